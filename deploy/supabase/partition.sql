-- visit-pacer, optional: store_visits by day, so that retention drops a partition where it would delete rows.
-- Run once, as the owner of the table:  psql "$DATABASE_URL" --single-transaction -f deploy/supabase/partition.sql
--
-- The table as it is becomes the first partition, as a whole; no row is copied. It takes an exclusive lock, and one pass over the
-- table (that no visit lies beyond the boundary) and over its new index (id, visited_at).
--
-- Know before: a unique index on a partitioned table has to hold the partition key. So `id` is unique only together with
-- `visited_at`, and the second guard against duplicates, (distribution_id, visit_number), as well: it no longer refuses the same
-- number at another moment. The first guard, compare-and-set of progress in the same statement, is what it was.

set local client_min_messages = warning;
set local lock_timeout = '10s';
set local timezone = 'UTC';

do $$
declare
  boundary timestamptz;
  found text;
  item record;
begin
  if exists (select from pg_partitioned_table where partrelid = 'public.store_visits'::regclass) then
    raise exception 'visit-pacer: store_visits is partitioned already' using hint = 'nothing was changed';
  end if;
  select string_agg(conrelid::regclass::text, ', ') into found from pg_constraint where confrelid = 'public.store_visits'::regclass;
  if found is not null then
    raise exception 'visit-pacer: % refers to store_visits by a foreign key, which a table that is partitioned by visited_at cannot be the target of', found
      using hint = 'drop that key first; nothing was changed';
  end if;
  select string_agg(tgname, ', ') into found from pg_trigger where tgrelid = 'public.store_visits'::regclass and not tgisinternal;
  if found is not null then
    raise exception 'visit-pacer: store_visits has triggers of its own: %', found
      using hint = 'drop them, run this, and create them again on the partitioned table; nothing was changed';
  end if;
  select string_agg(column_name, ', ') into found from information_schema.columns
   where table_schema = 'public' and table_name = 'store_visits' and (is_identity = 'YES' or column_name = 'visited_at' and data_type <> 'timestamp with time zone');
  if found is not null then
    raise exception 'visit-pacer: expected visited_at as timestamptz and no identity columns, found others: %', found using hint = 'nothing was changed';
  end if;

  lock table public.store_visits in access exclusive mode;
  select date_trunc('day', greatest(max(visited_at), now())) + interval '1 day' into boundary from public.store_visits;
  alter table public.store_visits alter column visited_at set not null;
  alter table public.store_visits rename to store_visits_before_partitions;
  create table public.store_visits (like public.store_visits_before_partitions including defaults including generated including comments including storage)
    partition by range (visited_at);

  -- What belongs to the table rather than to its rows.
  for item in select pg_get_constraintdef(oid) as definition, conname, contype from pg_constraint
               where conrelid = 'public.store_visits_before_partitions'::regclass and contype in ('f', 'c') loop
    execute format('alter table public.store_visits add constraint %I %s', item.conname, item.definition);
  end loop;
  for item in select a.grantee, a.privilege_type from pg_class c, aclexplode(c.relacl) a
               where c.oid = 'public.store_visits_before_partitions'::regclass loop
    execute format('grant %s on public.store_visits to %s', item.privilege_type,
      case item.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(item.grantee)) end);
  end loop;
  for item in select policyname, permissive, array_to_string(roles, ', ') as roles, cmd, qual, with_check from pg_policies
               where schemaname = 'public' and tablename = 'store_visits_before_partitions' loop
    execute format('create policy %I on public.store_visits as %s for %s to %s%s%s', item.policyname, item.permissive, item.cmd, item.roles,
      ' using (' || item.qual || ')', ' with check (' || item.with_check || ')');
  end loop;
  if (select relrowsecurity from pg_class where oid = 'public.store_visits_before_partitions'::regclass) then
    alter table public.store_visits enable row level security;
  end if;

  alter index if exists public.store_visits_distribution_visit_number rename to store_visits_before_distribution_visit_number;
  alter table public.store_visits_before_partitions drop constraint if exists store_visits_pkey;
  alter table public.store_visits add primary key (id, visited_at);
  create unique index store_visits_distribution_visit_number
    on public.store_visits (distribution_id, visit_number, visited_at) where distribution_id is not null;
  execute format('alter table public.store_visits attach partition public.store_visits_before_partitions for values from (minvalue) to (%L)', boundary);
  create table public.store_visits_default partition of public.store_visits default;
  alter table public.store_visits_default enable row level security;  -- by way of store_visits its own policies count

  -- Views follow a table that is renamed: they are to read the whole again.
  for item in select distinct c.oid::regclass::text as name, pg_get_viewdef(c.oid) as definition, c.reloptions
                from pg_depend d join pg_rewrite r on r.oid = d.objid join pg_class c on c.oid = r.ev_class
               where d.refobjid = 'public.store_visits_before_partitions'::regclass and c.relkind = 'v' loop
    execute format('create or replace view %s %s as %s', item.name, 'with (' || array_to_string(item.reloptions, ', ') || ')',
      replace(item.definition, 'store_visits_before_partitions', 'store_visits'));
  end loop;
end $$;

-- Partitions for today and the days ahead; what there is none for goes to the default one, and stays there. Call it daily.
create or replace function public.visit_pacer_make_partitions(days_ahead integer default 7) returns integer
language plpgsql set search_path = '' set timezone = 'UTC' as $$
declare
  day date;
  made integer := 0;
begin
  for day in select (current_date + n)::date from generate_series(0, least(greatest(days_ahead, 0), 366)) n loop
    continue when to_regclass(format('public.store_visits_%s', to_char(day, 'YYYYMMDD'))) is not null;
    begin
      execute format('create table public.store_visits_%s partition of public.store_visits for values from (%L) to (%L)',
        to_char(day, 'YYYYMMDD'), day::timestamptz, (day + 1)::timestamptz);
      execute format('revoke all on public.store_visits_%s from public', to_char(day, 'YYYYMMDD'));
      execute format('alter table public.store_visits_%s enable row level security', to_char(day, 'YYYYMMDD'));
      made := made + 1;
    exception when invalid_object_definition or check_violation then
      null;  -- the day lies in a partition that is there, such as the first, or visits of it in the default one
    end;
  end loop;
  return made;
end $$;
comment on function public.visit_pacer_make_partitions is 'visit-pacer: makes the partitions of store_visits for the days ahead';

-- Drops the oldest partition if its every visit is older, organic ones among them, and counts the generated ones as purged: they never
-- come again. One a call, to be called until it says nothing: a drop locks the whole table until its transaction ends, and nobody is
-- to wait while the next one is counted. All of a partition or nothing: one with a distribution that somebody holds is passed over.
create or replace function public.visit_pacer_drop_partitions(keep interval)
returns table (partition text, purged bigint)
language plpgsql set search_path = '' set timezone = 'UTC' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
  ends timestamptz;
  oid oid;
begin
  if keep is null or keep < interval '1 day' then
    raise exception using errcode = 'invalid_parameter_value', message = format('visit_pacer_drop_partitions: keep is %s', coalesce(keep::text, 'null')),
      hint = 'say how long visits are kept, a day at the least, such as: select * from visit_pacer_drop_partitions(interval ''90 days'')';
  end if;
  for oid, partition, ends in
    select c.oid, c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz
      from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'public.store_visits'::regclass order by 3
  loop
    continue when ends is null or ends > clock_timestamp() - keep;
    begin
      execute format('lock table public.%I in share row exclusive mode', partition);
      execute format('create temporary table visit_pacer_dropping on commit drop as
                        select distribution_id, count(*) as visits from public.%I where distribution_id is not null group by 1', partition);
      if exists (select from pg_temp.visit_pacer_dropping d where not public.visit_pacer_lock_row(d.distribution_id)) then
        raise lock_not_available;
      end if;
      update public.visit_distribution_progress p set purged = p.purged + d.visits
        from pg_temp.visit_pacer_dropping d where p.distribution_id = d.distribution_id;
      select coalesce(sum(d.visits), 0) into purged from pg_temp.visit_pacer_dropping d;
      drop table pg_temp.visit_pacer_dropping;
      execute format('drop table public.%I', partition);
      return next;
      return;
    exception when lock_not_available then
      raise notice 'visit-pacer: % is in use; it is dropped by the next call', partition;
    end;
  end loop;
end $$;
comment on function public.visit_pacer_drop_partitions is 'visit-pacer: drops the oldest partition of store_visits if it is older, and counts its generated visits as purged; call it until it says nothing';

revoke all on function public.visit_pacer_make_partitions, public.visit_pacer_drop_partitions from public;
select public.visit_pacer_make_partitions();
select public.visit_pacer_revoke_public();
