-- Takes visit-pacer out of a database and leaves the tables partners, visit_distribution and store_visits as they were: its
-- triggers, functions, views, tables, columns, cron jobs and rights go, and what it replaced comes back (visit_pacer_replaced).
-- Run by the owner of the tables, in the SQL Editor or with psql, as a whole. It is one transaction: all of it or nothing.
--
-- Stop the agents first. For the generated visits there is one choice, made below `begin`, or before this file by
-- `set visit_pacer.keep_visits = 'no'`:
--   yes  they stay, and so does what says that they are synthetic: the columns that were added to store_visits, and their index
--   no   they are removed, and the columns with them, whatever else was written there; visits that were adopted count as generated
begin;
select set_config('visit_pacer.keep_visits',
  case when coalesce(nullif(current_setting('visit_pacer.keep_visits', true), ''), 'yes')::boolean then 'yes' else 'no' end, true);

set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions
set local statement_timeout = 0;
set local search_path = public, pg_catalog;

-- It works from any state, also a half-applied one: each object is looked for before it is used. Nothing is stored from here on; a batch
-- that is being stored is waited for.
do $$
declare
  live text;
begin
  if not exists (select from pg_class c where c.relnamespace = 'public'::regnamespace and c.relname like 'visit\_pacer\_%')
     and not exists (select from pg_proc p where p.pronamespace = 'public'::regnamespace
                        and (p.proname like 'visit\_pacer\_%' or obj_description(p.oid, 'pg_proc') like 'visit-pacer:%'))
     and not exists (select from pg_attribute a where a.attrelid in (to_regclass('public.visit_distribution'), to_regclass('public.store_visits'))
                        and not a.attisdropped and col_description(a.attrelid, a.attnum) like 'visit-pacer:%') then
    raise exception 'visit-pacer is not in this database (nothing of it was found in the schema public); nothing was changed';
  end if;
  if to_regclass('public.visit_pacer_agents') is not null then
    execute $query$
      select string_agg(name, ', ') from public.visit_pacer_agents
       where last_heartbeat_at between clock_timestamp() - interval '20 seconds' and clock_timestamp() + interval '1 second'
    $query$ into live;
    if live is not null then
      raise exception using message = format('an agent is running (%s); nothing was changed', live),
        hint = 'stop it, wait 20 seconds and run this again; who it is: select name, last_heartbeat_at from visit_pacer_agents';
    end if;
  end if;
  if to_regclass('public.visit_pacer_control') is not null then
    execute 'update public.visit_pacer_control set paused = true';
  end if;
  if not exists (select from pg_attribute a where a.attrelid = to_regclass('public.store_visits') and a.attname = 'distribution_id'
                    and not a.attisdropped) then
    perform set_config('visit_pacer.keep_visits', 'no', true);  -- none to keep
  elsif not exists (select from public.store_visits where distribution_id is not null) then
    perform set_config('visit_pacer.keep_visits', 'no', true);
  end if;
end $$;

do $$
declare
  removed bigint := 0;
begin
  if to_regclass('public.visit_distribution_progress') is not null and to_regclass('public.visit_distribution') is not null then
    update public.visit_distribution v
       set total_distributed = case current_setting('visit_pacer.keep_visits') when 'no' then p.baseline else p.distributed end
      from public.visit_distribution_progress p where p.distribution_id = v.id and p.distributed <> p.baseline;
  end if;
  if current_setting('visit_pacer.keep_visits') = 'no' and exists (
       select from pg_attribute a where a.attrelid = to_regclass('public.store_visits') and a.attname = 'distribution_id'
          and not a.attisdropped) then
    delete from public.store_visits where distribution_id is not null;
    get diagnostics removed = row_count;
  end if;
  if removed > 0 then
    raise notice 'visit-pacer: % generated visits removed', removed;
  end if;
end $$;

-- Jobs that would fail from now on, and the rights of the agent's own role.
do $$
declare
  held record;
begin
  if to_regclass('cron.job') is not null then
    for held in execute 'select jobid, jobname from cron.job where jobname like ''visit-pacer: %'' and username = current_user' loop
      execute format('select cron.unschedule(%s)', held.jobid);
      raise notice 'visit-pacer: the cron job "%" is gone', held.jobname;
    end loop;
  end if;
  for held in select c.oid::regclass as name from pg_policy p join pg_class c on c.oid = p.polrelid where p.polname = 'visit_pacer_agent' loop
    execute format('drop policy visit_pacer_agent on %s', held.name);
  end loop;
  if exists (select from pg_roles where rolname = 'visit_pacer') then
    for held in select t from unnest(array['partners', 'visit_distribution', 'store_visits']) t
                 where to_regclass('public.' || t) is not null loop
      execute format('revoke all on table public.%I from visit_pacer', held.t);
    end loop;
    execute 'revoke all on schema public from visit_pacer';
    if to_regclass('realtime.messages') is not null then  -- broadcast.sql
      begin
        execute 'revoke all on realtime.messages from visit_pacer';
        execute 'revoke all on schema realtime from visit_pacer';
      exception when insufficient_privilege then
        raise notice 'visit-pacer: the rights of the role visit_pacer in the schema realtime stay: %', sqlerrm;
      end;
    end if;
    raise notice 'visit-pacer: the role visit_pacer has no rights here any more; drop role visit_pacer, where no other database needs it';
  end if;
end $$;

-- An object of visit-pacer has a name that begins with visit_pacer_, or says so in its comment. Nothing is dropped with CASCADE, so a view
-- of yours that depends on one is named in an error.
do $$
declare
  ours record;
begin
  for ours in
    select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass) as statement
      from pg_trigger t where t.tgname like 'zzz\_visit\_pacer\_%' and not t.tgisinternal
    union all
    select * from (select format('drop view %s', c.oid::regclass) from pg_class c
      where c.relnamespace = 'public'::regnamespace and c.relkind = 'v'
        and (c.relname like 'visit\_pacer\_%' or obj_description(c.oid, 'pg_class') like 'visit-pacer:%')) v
    union all
    select * from (select format('drop function %s', p.oid::regprocedure) from pg_proc p
      where p.pronamespace = 'public'::regnamespace
        and (p.proname like 'visit\_pacer\_%' or obj_description(p.oid, 'pg_proc') like 'visit-pacer:%')) f
  loop
    execute ours.statement;
  end loop;
  for ours in select t.oid::regtype as name from pg_type t
               where t.typnamespace = 'public'::regnamespace and obj_description(t.oid, 'pg_type') like 'visit-pacer:%' loop
    execute format('drop type %s', ours.name);
  end loop;
  if current_setting('visit_pacer.keep_visits') = 'no' then
    drop index if exists public.store_visits_distribution_visit_number;
  end if;
  for ours in
    select a.attrelid::regclass as of_table, string_agg(format('drop column %I', a.attname), ', ') as statement
      from pg_attribute a
     where a.attrelid in (to_regclass('public.visit_distribution'), to_regclass('public.store_visits')) and not a.attisdropped
       and col_description(a.attrelid, a.attnum) like 'visit-pacer:%'
       and (a.attrelid = to_regclass('public.visit_distribution') or current_setting('visit_pacer.keep_visits') = 'no')
     group by a.attrelid
  loop
    execute format('alter table %s %s', ours.of_table, ours.statement);
  end loop;
end $$;

-- What was replaced comes back. One that cannot is told, with its text, and does not stop the rest; so is a policy that opened a
-- table to everybody and made way for fix_rls.sql: to open it again is for a person to decide.
do $$
declare
  was record;
begin
  if to_regclass('public.visit_pacer_replaced') is null then
    return;
  end if;
  for was in select r.name, r.definition from public.visit_pacer_replaced r order by r.replaced_at loop
    if was.name like 'policy %' then
      raise notice 'visit-pacer: not brought back: %', was.definition;
      continue;
    end if;
    begin
      execute was.definition;
      raise notice 'visit-pacer: % is as it was', was.name;
    exception when others then
      raise warning 'visit-pacer: % could not be brought back (%); this was it: %', was.name, sqlerrm, was.definition;
    end;
  end loop;
end $$;

do $$
declare
  ours text;
begin
  for ours in
    select format('drop table %s', c.oid::regclass) from pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
       and (c.relname like 'visit\_pacer\_%' or obj_description(c.oid, 'pg_class') like 'visit-pacer:%')
  loop
    execute ours;
  end loop;
end $$;
commit;
