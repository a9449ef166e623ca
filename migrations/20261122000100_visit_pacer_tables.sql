-- visit-pacer 1 of 8: the tables.
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

-- Functions and views of ours that were in the way under another signature, as they were.
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

alter table public.visit_distribution
  add column if not exists is_active boolean default true,
  add column if not exists start_time timestamptz default now(),
  add column if not exists end_time timestamptz,
  add column if not exists total_distributed numeric default 0,
  add column if not exists last_distribution timestamptz,
  add column if not exists updated_at timestamptz default now(),
  add column if not exists catch_up numeric,         -- set by the user; null: that of visit_pacer_control
  add column if not exists config_version bigint,    -- the rest is written by the trigger alone
  add column if not exists anchor_units numeric,     -- 1/86,400,000,000 visit: see visit_pacer_curve()
  add column if not exists anchor_at timestamptz,
  add column if not exists changed_xid xid8;

alter table public.store_visits
  add column if not exists session_duration integer,
  add column if not exists page_path text,
  add column if not exists user_agent text,
  add column if not exists referrer text,
  add column if not exists device_type text,
  add column if not exists distribution_id uuid,     -- null: an organic visit, never touched or counted
  add column if not exists visit_number bigint,
  add column if not exists created_at timestamptz;
alter table public.store_visits alter column created_at set default clock_timestamp();

comment on column public.store_visits.distribution_id is
  'The visit_distribution row that generated this visit (synthetic); null for an organic visit. No foreign key, so that visits outlive their row.';

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
  rows_known bigint not null default 0
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
    if exists (select from pg_roles where rolname = 'service_role') then
      execute format('grant select on table public.%I to service_role', t);
    end if;
  end loop;
end $$;

insert into public.visit_pacer_migrations (version) values ('20261122000100') on conflict do nothing;
