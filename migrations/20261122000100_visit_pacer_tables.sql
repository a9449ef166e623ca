-- visit-pacer 1 of 9: the tables.
--
-- Additive and idempotent: it creates what is missing and adds columns to what is there; it never drops, rewrites or
-- locks a user's data for long (a column with a volatile default is added without it, then given it).
-- Every file of this folder runs in one transaction, needs no superuser, and ends by recording its own version.

set local client_min_messages = warning;  -- not a line for every column that is there
set local lock_timeout = '10s';  -- an ALTER TABLE that queues behind a long transaction would make everybody else wait

create table if not exists public.visit_pacer_migrations (
  version text primary key,
  applied_at timestamptz not null default clock_timestamp()
);

-- What was there and had to change, and the SQL that brings it back: an uninstall runs it, oldest first.
create table if not exists public.visit_pacer_replaced (
  name text not null,
  definition text not null,
  replaced_at timestamptz not null default clock_timestamp()
);

-- The user's own three tables: created only where they are absent.

select set_config('visit_pacer.were_there', coalesce(string_agg(relname::text, ','), ''), false)
  from pg_class where relnamespace = 'public'::regnamespace and relname in ('partners', 'visit_distribution', 'store_visits');

create table if not exists public.partners (
  id uuid primary key default gen_random_uuid(),
  name text,
  created_at timestamptz not null default now()
);

create table if not exists public.visit_distribution (
  id uuid primary key default gen_random_uuid(),
  partner_id uuid not null references public.partners (id),
  total_visits bigint,
  time_period text,
  visits_per_unit numeric,
  is_active boolean default true,
  start_time timestamptz default now(),
  end_time timestamptz,
  total_distributed numeric default 0,
  last_distribution timestamptz,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);

create table if not exists public.store_visits (
  id uuid primary key default gen_random_uuid(),
  partner_id uuid not null references public.partners (id),
  visited_at timestamptz not null default now(),
  session_duration integer,
  page_path text,
  created_at timestamptz default clock_timestamp()
);

-- What the user's tables lack. A column that is added here says so in its comment, so that an uninstall can tell it from the
-- user's own. No default here is volatile, so no row is rewritten.
do $$
declare
  lacking record;
begin
  for lacking in
    select l.* from (values
      ('visit_distribution', 'is_active', 'boolean default true', 'false is a pause'),
      ('visit_distribution', 'start_time', 'timestamptz default now()', 'nothing is due before; null: it never starts'),
      ('visit_distribution', 'end_time', 'timestamptz', 'nothing falls due after; null: no end'),
      ('visit_distribution', 'total_distributed', 'numeric default 0', 'as last told; visit_distribution_status is exact'),
      ('visit_distribution', 'last_distribution', 'timestamptz', 'when total_distributed was last told'),
      ('visit_distribution', 'created_at', 'timestamptz default now()', 'when the row was made'),
      ('visit_distribution', 'updated_at', 'timestamptz default now()', 'when the pace was last edited'),
      ('visit_distribution', 'catch_up', 'numeric', 'yours to set: how much faster than its pace a backlog drains; null: as in visit_pacer_control'),
      ('visit_distribution', 'config_version', 'bigint', 'written by the trigger alone: moves with every edit of the pace'),
      ('visit_distribution', 'anchor_units', 'numeric', 'written by the trigger alone: the curve at anchor_at, in 1/86,400,000,000 visit'),
      ('visit_distribution', 'anchor_at', 'timestamptz', 'written by the trigger alone: where the curve of this pace begins'),
      ('visit_distribution', 'changed_xid', 'xid8', 'written by the trigger alone: the transaction of the last edit of the pace'),
      ('store_visits', 'session_duration', 'integer', 'seconds'),
      ('store_visits', 'page_path', 'text', 'the page that was looked at'),
      ('store_visits', 'user_agent', 'text', 'the browser'),
      ('store_visits', 'referrer', 'text', 'where the visit came from; null: direct'),
      ('store_visits', 'device_type', 'text', 'desktop, mobile or tablet'),
      ('store_visits', 'distribution_id', 'uuid', 'the visit_distribution row that generated this visit (synthetic); null for an '
         'organic visit. No foreign key, so that visits outlive their row'),
      ('store_visits', 'visit_number', 'bigint', 'counts the visits of a distribution; never given twice'),
      ('store_visits', 'created_at', 'timestamptz', 'when the visit was stored')
    ) as l (in_table, name, definition, meaning)
    where not exists (select from pg_attribute a
                       where a.attrelid = format('public.%I', l.in_table)::regclass and a.attname = l.name and not a.attisdropped)
  loop
    execute format('alter table public.%I add column %I %s', lacking.in_table, lacking.name, lacking.definition);
    execute format('comment on column public.%I.%I is %L', lacking.in_table, lacking.name, 'visit-pacer: ' || lacking.meaning);
  end loop;
end $$;

-- A visit is stored when it is stored, not when the transaction of its batch began.
do $$
declare
  was record;
begin
  select a.attnum, pg_get_expr(d.adbin, d.adrelid) as usual, col_description(a.attrelid, a.attnum) like 'visit-pacer:%' as ours into was
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = 'public.store_visits'::regclass and a.attname = 'created_at'
     and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype) and a.attidentity = '' and a.attgenerated = '';
  if found and was.usual is distinct from 'clock_timestamp()' then
    if was.ours is not true then
      insert into public.visit_pacer_replaced (name, definition)
      values ('store_visits.created_at', 'alter table public.store_visits alter column created_at ' || coalesce('set default ' || was.usual, 'drop default'));
    end if;
    alter table public.store_visits alter column created_at set default clock_timestamp();
  end if;
end $$;

-- Ours.

-- Deliberately without a foreign key to visit_distribution: it survives the delete of its row.
create table if not exists public.visit_distribution_progress (
  distribution_id uuid primary key,
  distributed bigint not null default 0,       -- stored + purged + baseline
  last_number bigint not null default 0,       -- the highest visit_number given; never used again
  baseline bigint not null default 0,          -- counted before visit-pacer came, never stored by it
  purged bigint not null default 0,            -- stored once, removed by retention; never issued again
  last_visited_at timestamptz,
  bucket_units numeric,                        -- the token bucket's level at bucket_at, in curve units; null: full
  bucket_at timestamptz,
  missing bigint not null default 0,           -- as found by the last reconciliation
  backfill boolean not null default false,     -- asked for by visit_pacer_backfill(), honoured and cleared by the trigger
  invalid_reason text,                         -- why its inserts fail; null: they do not
  invalid_at timestamptz,
  check (distributed >= 0 and last_number >= 0 and baseline >= 0 and purged >= 0)
) with (fillfactor = 70);                      -- every batch updates it: leave room for HOT

create table if not exists public.visit_page_paths (
  path text not null,
  weight numeric not null check (weight > 0 and weight < 1000000000),
  partner_id uuid,                             -- null: for every partner that has none of its own
  unique nulls not distinct (path, partner_id)
);

create table if not exists public.visit_pacer_control (
  id boolean primary key default true check (id),
  paused boolean not null default false,
  catch_up numeric not null default 2 check (catch_up >= 1 and catch_up <= 1000 and scale(trim_scale(catch_up)) <= 3),
  give_up_after interval not null default '24 hours' check (give_up_after >= interval '0'),
  echo_budget numeric not null default 0.2 check (echo_budget > 0 and echo_budget <= 100)
);
insert into public.visit_pacer_control default values on conflict do nothing;

create table if not exists public.visit_pacer_agents (
  id uuid primary key,                         -- new at each start of a process
  name text not null,
  started_at timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp(),
  version text,
  realtime text,                               -- live, or why not
  rows_known bigint not null default 0,
  rows_owned bigint not null default 0,        -- those of them that are its to store
  serving boolean not null default false       -- it knows the rows, and its batches get through
) with (fillfactor = 50);

-- The one other table that is published: a row of our own to prove that events still arrive.
create table if not exists public.visit_pacer_canary (
  id integer primary key default 1 check (id = 1),
  touched_at timestamptz not null default clock_timestamp(),
  touched_by uuid
);
insert into public.visit_pacer_canary (id) values (1) on conflict do nothing;

-- Row level security and grants: only on the tables that are ours, and on the user's three where this file made them.
-- On tables that were there, service_role's read is added and nothing else changes.
do $$
declare
  ours constant text[] := array['visit_pacer_migrations', 'visit_pacer_replaced', 'visit_distribution_progress',
    'visit_page_paths', 'visit_pacer_control', 'visit_pacer_agents', 'visit_pacer_canary'];
  users constant text[] := array['partners', 'visit_distribution', 'store_visits'];
  were_there constant text[] := string_to_array(current_setting('visit_pacer.were_there'), ',');
  t text;
  r text;
begin
  foreach t in array ours || users loop
    if t <> all (were_there) or t = any (ours) then
      execute format('alter table public.%I enable row level security', t);
      execute format('revoke all on table public.%I from public', t);
      foreach r in array array['anon', 'authenticated'] loop
        if exists (select from pg_roles where rolname = r) then
          execute format('revoke all on table public.%I from %I', t, r);
        end if;
      end loop;
    end if;
    if exists (select from pg_roles where rolname = 'service_role')
       and not has_table_privilege('service_role', format('public.%I', t), 'select') then
      if t <> all (ours) then
        insert into public.visit_pacer_replaced (name, definition)
        values (t, format('revoke select on table public.%I from service_role', t));
      end if;
      execute format('grant select on table public.%I to service_role', t);
    end if;
  end loop;
end $$;

insert into public.visit_pacer_migrations (version) values ('20261122000100') on conflict do nothing;
