-- visit-pacer 3 of 7: the one write. The agent and the SQL functions store visits only through it.

set local client_min_messages = warning;
set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions

-- The partners that nobody holds exclusively, locked as the foreign key will lock them, so that the key's own check never
-- waits. SECURITY DEFINER: the lock needs UPDATE on some column, which a writer of visits should not have.
create or replace function public.visit_pacer_lock_partners(partners uuid[]) returns setof uuid
language sql security definer set search_path = '' as $$
  select p.id from public.partners p where p.id = any (partners) order by p.id for key share skip locked
$$;
comment on function public.visit_pacer_lock_partners is 'visit-pacer: locks partners FOR KEY SHARE, skipping those that are held';

-- Whether visits may be stored at all: the control row, locked, so that `paused` is a barrier. SECURITY DEFINER for the same reason.
create or replace function public.visit_pacer_may_store() returns boolean
language sql security definer set search_path = '' as $$
  select exists (select from (select from public.visit_pacer_control c where not c.paused for share skip locked) held)
$$;
comment on function public.visit_pacer_may_store is 'visit-pacer: locks the control row; false while everything is paused';

-- Locks a distribution row that may be gone, so that its progress may be written. Gives up where somebody holds it for long.
create or replace function public.visit_pacer_lock_row(distribution uuid) returns boolean
language plpgsql set search_path = '' set lock_timeout = '500ms' as $$
begin
  perform from public.visit_distribution v where v.id = distribution for no key update;
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end $$;
comment on function public.visit_pacer_lock_row is 'visit-pacer: locks a distribution row; false where somebody holds it for long';

-- A statement that sees what others committed is what every check here relies on.
create or replace function public.visit_pacer_require_read_committed() returns void
language plpgsql set search_path = '' as $$
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception using errcode = 'invalid_transaction_state',
      message = pg_catalog.format('visit-pacer works in read committed transactions; this one is %s', pg_catalog.current_setting('transaction_isolation')),
      hint = 'call the function by itself, or begin the transaction with: begin isolation level read committed';
  end if;
end $$;
comment on function public.visit_pacer_require_read_committed is 'visit-pacer: refuses other isolation levels';

-- The arguments of visit_pacer_store(), which Rust encodes field by field in this order.
do $$
begin
  if to_regtype('public.visit_pacer_batch_row') is null then
    create type public.visit_pacer_batch_row as (
      distribution_id uuid, version bigint, last_number bigint, distributed bigint, bucket_at_before timestamptz, visits integer,
      cut timestamptz, last_visited_at timestamptz, bucket_units text, bucket_at timestamptz);
    comment on type public.visit_pacer_batch_row is 'visit-pacer: a distribution of a batch, as it was read and as it is to be';
  end if;
  if to_regtype('public.visit_pacer_batch_visit') is null then
    create type public.visit_pacer_batch_visit as (
      distribution_id uuid, partner_id uuid, visit_number bigint, id uuid, visited_at timestamptz,
      session_duration integer, page_path text, user_agent text, referrer text, device_type text);
    comment on type public.visit_pacer_batch_visit is 'visit-pacer: a visit of a batch';
  end if;
end $$;

-- Stores a batch in one statement: for each distribution, its visits, progress and bucket move together or not at all. A distribution is
-- refused, and only that one, if another session holds it or its partner, if its version is not the one that the batch was
-- computed from, or if its progress has moved (compare-and-set). Returns the distributions that were stored. The caller reads a
-- refused one again in another statement, since this one has one snapshot.
create or replace function public.visit_pacer_store(batch_rows public.visit_pacer_batch_row[], batch_visits public.visit_pacer_batch_visit[])
returns setof uuid
language sql set search_path = '' set timezone = 'UTC' as $$  -- UTC: for a visited_at without a zone
  with locked as materialized (
    -- Carries the columns of the batch, so that nothing below has to join unnest() again.
    select v.partner_id, v.total_visits, batch.*
      from unnest(batch_rows) as batch join public.visit_distribution v on v.id = batch.distribution_id
     where v.is_active and v.config_version = batch.version and batch.cut <= clock_timestamp()
       and (select public.visit_pacer_may_store())
       for no key update of v skip locked
  ), partners as materialized (
    select p from public.visit_pacer_lock_partners((select array_agg(distinct locked.partner_id) from locked)) p
  ), advanced as (
    update public.visit_distribution_progress p
       set distributed = p.distributed + locked.visits, last_number = p.last_number + locked.visits,
           last_visited_at = locked.last_visited_at, bucket_units = locked.bucket_units::numeric, bucket_at = locked.bucket_at,
           invalid_reason = null, invalid_at = null
      from locked
     where p.distribution_id = locked.distribution_id
       and p.last_number = locked.last_number and p.distributed = locked.distributed
       and p.bucket_at is not distinct from locked.bucket_at_before
       and p.distributed + locked.visits <= locked.total_visits
       and (locked.partner_id in (select partners.p from partners)) is true
    returning p.distribution_id
  ), stored as (
    insert into public.store_visits (distribution_id, partner_id, visit_number, id, visited_at,
                                     session_duration, page_path, user_agent, referrer, device_type)
    select (v.visit).distribution_id, (v.visit).partner_id, (v.visit).visit_number, (v.visit).id, (v.visit).visited_at,
           (v.visit).session_duration, (v.visit).page_path, (v.visit).user_agent, (v.visit).referrer, (v.visit).device_type
      -- unnest() in the select list streams, in FROM it is kept first. OFFSET 0: else it is evaluated for each column.
      from (select unnest(batch_visits) as visit offset 0) v
     where ((v.visit).distribution_id in (select advanced.distribution_id from advanced)) is true
  )
  select advanced.distribution_id from advanced
$$;
comment on function public.visit_pacer_store is 'visit-pacer: stores a batch of visits';

-- The database itself rejects a duplicate visit. Partial, so that organic visits cost nothing: it takes a tenth of a second on a
-- table of two million of them, under a lock that blocks writers only.
--
-- On a partitioned table a unique index must contain the partition key, and cannot exist where that is an expression: there the
-- compare-and-set of progress alone prevents duplicates.
do $$
declare
  partition_key text;
  of_expression boolean;
begin
  select string_agg(', ' || quote_ident(a.attname), ''), bool_or(k.attnum = 0) into partition_key, of_expression
    from pg_partitioned_table p cross join unnest(p.partattrs::smallint[]) k (attnum)
    left join pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.attnum and k.attnum > 0
   where p.partrelid = 'public.store_visits'::regclass;
  execute format(
    'create %s index if not exists store_visits_distribution_visit_number
       on public.store_visits (distribution_id, visit_number%s) where distribution_id is not null',
    case when of_expression then '' else 'unique' end, partition_key);
end $$;

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000300') on conflict do nothing;
