-- visit-pacer 3 of 7: the one write. The agent and the SQL functions store visits only through it.
--
-- The user's triggers on store_visits run under it as they run for the user's application: none of these functions changes
-- search_path, time zone or another setting, so they name every object with its schema and convert times explicitly.

set local client_min_messages = warning;
set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions

-- The partners that nobody holds exclusively, locked as the foreign key will lock them, so that the key's own check never
-- waits. SECURITY DEFINER: the lock needs UPDATE on some column, which a writer of visits should not have.
do $do$
begin
  execute format($function$
    create or replace function public.visit_pacer_lock_partners(partners text[]) returns setof text
    language sql security definer set search_path = '' as $$
      select p.id::text from public.partners p where p.id = any (partners::%s[]) order by p.id for key share skip locked
    $$
  $function$, public.visit_pacer_partner_type());
end $do$;
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

-- The arguments of visit_pacer_store(), which Rust encodes field by field in this order. A partner's id is text here, whatever its type.
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
      distribution_id uuid, partner_id text, visit_number bigint, id uuid, visited_at timestamptz,
      session_duration integer, page_path text, user_agent text, referrer text, device_type text);
    comment on type public.visit_pacer_batch_visit is 'visit-pacer: a visit of a batch';
  end if;
end $$;

-- The columns of store_visits that a batch fills, with the expression for each, by the table as it is now. A column that is missing, is
-- generated, or has another meaning (it does not take the values that visits have) is left out.
create or replace function public.visit_pacer_visit_columns()
returns table (name text, expression text)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  field record;
  target text;
  sample text;
begin
  for field in
    select f.*, pg_catalog.format_type(coalesce(nullif(d.typbasetype, 0), a.atttypid),
             case when d.typbasetype <> 0 then d.typtypmod else a.atttypmod end) as base,
           a.atttypid, a.atttypmod, a.attnotnull and not a.atthasdef and a.attidentity = '' as is_required
      from (values
        (1, 'distribution_id', 'uuid', '{}'::text[]),
        (2, 'partner_id', 'text', '{}'),
        (3, 'visit_number', 'bigint', '{}'),
        (4, 'id', 'uuid', '{}'),
        (5, 'visited_at', 'timestamp with time zone', '{}'),
        (6, 'session_duration', 'integer', '{90,3600}'),
        (7, 'page_path', 'text', '{/,/products/blue-shirt}'),
        (8, 'user_agent', 'text', '{"Mozilla/5.0 (X11; Linux x86_64; rv:160.0) Gecko/20100101 Firefox/160.0"}'),
        (9, 'referrer', 'text', '{https://www.google.com/}'),
        (10, 'device_type', 'text', '{desktop,mobile,tablet}')
      ) as f (place, name, type, samples)
      join pg_catalog.pg_attribute a on a.attrelid = 'public.store_visits'::pg_catalog.regclass and a.attname = f.name and not a.attisdropped
      join pg_catalog.pg_type d on d.oid = a.atttypid
     where a.attgenerated = '' and a.attidentity <> 'a'
     order by f.place
  loop
    target := pg_catalog.format_type(field.atttypid, field.atttypmod);
    name := field.name;
    expression := pg_catalog.format('(v.visit).%I', field.name);
    if field.name = 'id' and target <> 'uuid' then
      continue;  -- filled by its default
    elsif field.name = 'visited_at' then
      -- Rounded down to the column's precision, so that no visit is after end_time.
      if field.base like 'timestamp(%' then
        expression := pg_catalog.format('pg_catalog.date_bin(interval ''1 second'' / 1%s, (v.visit).visited_at, timestamptz ''2000-01-01 00:00:00+00'')',
                                        pg_catalog.repeat('0', substr(field.base, 11, 1)::integer));
      end if;
      if field.base not like 'timestamp%with time zone' then
        expression := pg_catalog.format('(%s at time zone ''UTC'')::%s', expression, target);
      end if;
    elsif target <> field.type then
      begin
        foreach sample in array field.samples loop
          execute pg_catalog.format('select %L::%s::%s', sample, field.type, target);
        end loop;
      exception when others then
        if field.is_required then
          raise exception using errcode = 'VP000',
            message = pg_catalog.format('public.store_visits.%I is %s, which does not take %L; give it a default, make it nullable, or change its type',
                                        field.name, target, sample);
        end if;
        continue;
      end;
      expression := pg_catalog.format('%s::%s', expression, target);
    end if;
    return next;
  end loop;
end $$;
comment on function public.visit_pacer_visit_columns is 'visit-pacer: the columns of store_visits that are filled';

-- Stores a batch: for each distribution, its visits, progress and bucket move together or not at all. A distribution is refused, and only
-- that one, if another session holds it or its partner, if its version is not the one that the batch was computed from, or if its progress
-- has moved (compare-and-set). Returns the distributions that were stored. The caller reads a refused one again in another statement,
-- since this one has the snapshot from before the lock.
--
-- It is made for the columns that store_visits has, and made again when they change. A trigger that swallows a visit fails the batch:
-- what is not stored is not counted.
create or replace function public.visit_pacer_define_store() returns void
language plpgsql set search_path = '' as $do$
declare
  columns text;
  expressions text;
begin
  select pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', '), pg_catalog.string_agg(c.expression, ', ')
    into columns, expressions from public.visit_pacer_visit_columns() c;
  execute pg_catalog.format($function$
create or replace function public.visit_pacer_store(batch_rows public.visit_pacer_batch_row[], batch_visits public.visit_pacer_batch_visit[])
returns setof uuid
language plpgsql as $store$
declare
  stored uuid[];
  expected bigint;
  inserted bigint;
begin
  with locked as materialized (
    -- Carries the columns of the batch, so that nothing below has to join unnest() again.
    select v.partner_id::text as partner, v.total_visits::numeric as total_visits, batch.*
      from pg_catalog.unnest(batch_rows) as batch join public.visit_distribution v on v.id = batch.distribution_id
     where v.is_active and v.config_version = batch.version and batch.cut <= pg_catalog.clock_timestamp()
       and (select public.visit_pacer_may_store())
       for no key update of v skip locked
  ), partners as materialized (
    select p from public.visit_pacer_lock_partners((select pg_catalog.array_agg(distinct locked.partner) from locked)) p
  ), advanced as (
    update public.visit_distribution_progress p
       set distributed = p.distributed + locked.visits, last_number = p.last_number + locked.visits,
           last_visited_at = locked.last_visited_at, bucket_units = locked.bucket_units::numeric, bucket_at = locked.bucket_at,
           reason_code = null, reason_detail = null, reason_at = null
      from locked
     where p.distribution_id = locked.distribution_id
       and p.last_number = locked.last_number and p.distributed = locked.distributed
       and p.bucket_at is not distinct from locked.bucket_at_before
       and p.distributed + locked.visits <= locked.total_visits
       and (locked.partner in (select partners.p from partners)) is true
    returning p.distribution_id, locked.visits
  )
  select pg_catalog.array_agg(advanced.distribution_id), pg_catalog.sum(advanced.visits) into stored, expected from advanced;
  if stored is null then
    return;
  end if;
  insert into public.store_visits (%1$s)
  select %2$s
    -- unnest() in the select list streams, in FROM it is kept first. OFFSET 0: else it is evaluated for each column.
    from (select pg_catalog.unnest(batch_visits) as visit offset 0) v
   where ((v.visit).distribution_id in (select pg_catalog.unnest(stored))) is true;
  get diagnostics inserted = row_count;
  if inserted <> expected then
    raise exception using errcode = 'VP001',
      message = pg_catalog.format('%%s of %%s visits were discarded by a trigger on store_visits; nothing is stored: %%s', expected - inserted, expected,
        (select pg_catalog.string_agg(t.tgname, ', ' order by t.tgname) from pg_catalog.pg_trigger t
          where t.tgrelid = 'public.store_visits'::pg_catalog.regclass and not t.tgisinternal and t.tgenabled <> 'D'
            and t.tgtype::integer & 7 = 7)),
      hint = 'let the trigger return NEW for visits that have a distribution_id';
  end if;
  return query select pg_catalog.unnest(stored);
end $store$
  $function$, columns, expressions);
  comment on function public.visit_pacer_store is 'visit-pacer: stores a batch of visits';
end $do$;
comment on function public.visit_pacer_define_store is 'visit-pacer: makes visit_pacer_store() for the columns of store_visits';
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
