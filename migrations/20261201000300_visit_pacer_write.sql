-- visit-pacer 3 of 7: the one write. The agent and the SQL functions store visits only through it.

set local client_min_messages = warning;
set local lock_timeout = '10s';

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

-- One batch, one statement: either a row's visits, its progress and its bucket move together, or nothing of it does.
-- A row is refused, and only that row, when somebody holds it or its partner, when it is not the version that the batch was
-- computed from, or when its progress has moved (compare-and-set). Returns the rows that were stored; a refused one is
-- read again in another statement, since this one has one snapshot.
--
-- Rows: parallel arrays, one element a row. Visits: parallel arrays, one element a visit.
create or replace function public.visit_pacer_store(
  row_ids uuid[], row_versions bigint[], row_last_numbers bigint[], row_distributed bigint[], row_bucket_at_before timestamptz[],
  row_counts integer[], row_cuts timestamptz[], row_last_visited_at timestamptz[], row_bucket_units numeric[], row_bucket_at timestamptz[],
  visit_rows uuid[], visit_partners uuid[], visit_numbers bigint[], visit_ids uuid[], visit_moments timestamptz[],
  visit_durations integer[], visit_paths text[], visit_agents text[], visit_referrers text[], visit_devices text[])
returns setof uuid
language sql set search_path = '' set timezone = 'UTC' as $$  -- for a visited_at without a zone
  with batch as (
    select * from unnest(row_ids, row_versions, row_last_numbers, row_distributed, row_bucket_at_before,
                         row_counts, row_cuts, row_last_visited_at, row_bucket_units, row_bucket_at)
      as r (id, version, last_number, distributed, bucket_at_before, visits, cut, last_visited_at, bucket_units, bucket_at)
  ), locked as materialized (
    -- The batch's columns are carried through, so that nothing below has to join unnest() again.
    select v.partner_id, v.total_visits, batch.*
      from batch join public.visit_distribution v on v.id = batch.id
     where v.is_active and v.config_version = batch.version and batch.cut <= clock_timestamp()
       and (select public.visit_pacer_may_store())
       for no key update of v skip locked
  ), partners as materialized (
    select p from public.visit_pacer_lock_partners((select array_agg(distinct locked.partner_id) from locked)) p
  ), advanced as (
    update public.visit_distribution_progress p
       set distributed = p.distributed + locked.visits, last_number = p.last_number + locked.visits,
           last_visited_at = locked.last_visited_at, bucket_units = locked.bucket_units, bucket_at = locked.bucket_at,
           invalid_reason = null, invalid_at = null
      from locked
     where p.distribution_id = locked.id
       and p.last_number = locked.last_number and p.distributed = locked.distributed
       and p.bucket_at is not distinct from locked.bucket_at_before
       and p.distributed + locked.visits <= locked.total_visits
       and (locked.partner_id in (select partners.p from partners)) is true
    returning p.distribution_id as id
  ), stored as (
    insert into public.store_visits (distribution_id, partner_id, visit_number, id, visited_at,
                                     session_duration, page_path, user_agent, referrer, device_type)
    select v.* from (
      select unnest(visit_rows) as distribution_id, unnest(visit_partners), unnest(visit_numbers), unnest(visit_ids),
             unnest(visit_moments), unnest(visit_durations), unnest(visit_paths), unnest(visit_agents),
             unnest(visit_referrers), unnest(visit_devices)
    ) v
     where (v.distribution_id in (select advanced.id from advanced)) is true
  )
  select advanced.id from advanced
$$;
comment on function public.visit_pacer_store is 'visit-pacer: the one write';

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
