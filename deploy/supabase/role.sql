-- A login of the agent's own, visit_pacer, in place of postgres: it may do what the agent does, and nothing else; it owns nothing, so
-- it can drop and alter nothing. Run by the owner of the tables (CREATEROLE is enough) after `visit-pacer migrate`, and again
-- after each later one; any number of times. The commands for people (migrate, pause, sync, purge …) stay with the owner's login.
--
-- The password is yours to choose, at least 16 characters. In the SQL Editor: take the two dashes of the next line away and put
-- it there. With psql: psql "$DATABASE_URL" -c "set visit_pacer.password = '…'" -f role.sql. A second run without one keeps it.
-- set visit_pacer.password = '';
--
-- Then DATABASE_URL=postgres://visit_pacer:PASSWORD@db.REF.supabase.co:5432/postgres
-- or, through the session pooler, postgres://visit_pacer.REF:PASSWORD@aws-0-REGION.pooler.supabase.com:5432/postgres

begin;
set local lock_timeout = '3s';
set local client_min_messages = warning;

do $$
declare
  password constant text := coalesce(current_setting('visit_pacer.password', true), '');
  there constant boolean := exists (select from pg_roles where rolname = 'visit_pacer');
begin
  if to_regprocedure('public.visit_pacer_backfill(uuid)') is null then
    raise exception using message = 'the schema of visit-pacer is missing or old', hint = 'run visit-pacer migrate first';
  end if;
  if password <> '' and length(password) < 16 or password = '' and not there then
    raise exception using message = 'the role visit_pacer needs a password of at least 16 characters',
      hint = 'set visit_pacer.password first: see the head of role.sql';
  end if;
  if not there then
    create role visit_pacer login noinherit connection limit 12;  -- an agent has three, and a second one may take over
  end if;
  if password <> '' then
    execute format('alter role visit_pacer password %L', password);
  end if;
end $$;
set visit_pacer.password = '';

-- The bounds that the agent sets for each of its sessions, for whoever else uses this login.
alter role visit_pacer set statement_timeout = '10s';
alter role visit_pacer set lock_timeout = '2s';
alter role visit_pacer set idle_in_transaction_session_timeout = '5s';
alter role visit_pacer set timezone = 'UTC';

-- From nothing, so that what an earlier version needed does not stay.
revoke all on public.visit_distribution, public.store_visits, public.visit_distribution_progress, public.visit_page_paths,
  public.visit_user_agents, public.visit_referrers,  public.visit_pacer_control, public.visit_pacer_agents, public.visit_pacer_canary, public.visit_pacer_deletions, public.visit_pacer_edits, public.visit_pacer_migrations from visit_pacer;
grant usage on schema public to visit_pacer;

-- At start: is the schema there?
grant select on public.visit_pacer_migrations to visit_pacer;

-- (A trigger of yours on store_visits or visit_distribution runs as this role: grant what it reads, or make it SECURITY DEFINER.)

-- Reading the rows. Locking them (FOR NO KEY UPDATE) takes UPDATE on some column; these two are what is written back.
grant select, update (total_distributed, last_distribution) on public.visit_distribution to visit_pacer;
grant select on public.visit_pacer_deletions to visit_pacer;

-- The dashboard and `visit-pacer report`.
grant select on public.visit_pacer_edits to visit_pacer;

-- visit_pacer_store(), the one write: progress and bucket move (and are compared), the visits are inserted.
-- visit_pacer_reconcile_row(): `missing`; setting a failing row aside: `reason_code`, `reason_detail`, `reason_at`.
grant select, update (distributed, last_number, last_visited_at, bucket_units, bucket_at, missing, reason_code, reason_detail, reason_at)
  on public.visit_distribution_progress to visit_pacer;
grant insert (id, distribution_id, visit_number, partner_id, visited_at, session_duration, page_path, user_agent, referrer, device_type)
  on public.store_visits to visit_pacer;

-- visit_pacer_count_mismatches(), visit_pacer_reconcile_row(): generated visits are counted, and nothing else of a visit is read.
grant select (distribution_id, visit_number) on public.store_visits to visit_pacer;

-- The catalogue.
grant select on public.visit_page_paths, public.visit_user_agents, public.visit_referrers to visit_pacer;

-- Each second: `last_heartbeat_at`, agents of yesterday, and the control row, which is made again where somebody deleted it.
grant select, insert, update, delete on public.visit_pacer_agents to visit_pacer;
grant select, insert (id) on public.visit_pacer_control to visit_pacer;

-- The proof that events still arrive.
grant select, update (touched_at, touched_by) on public.visit_pacer_canary to visit_pacer;

-- Of partners nothing at all: visit_pacer_lock_partners() locks them as its owner, and the foreign key is checked as theirs.
grant execute on function public.visit_pacer_lock_partners(text[]), public.visit_pacer_may_store(), public.visit_pacer_count_mismatches(uuid[]),
  public.visit_pacer_reconcile_row(uuid, bigint, bigint, boolean), public.visit_pacer_initialise(), public.visit_pacer_create_progress(uuid, numeric, numeric),
  public.visit_pacer_store(public.visit_pacer_batch_row[], public.visit_pacer_batch_visit[]), public.visit_pacer_refresh_columns(),
  public.visit_pacer_visit_columns(), public.visit_pacer_utc(timestamptz), public.visit_pacer_utc(timestamp), public.visit_pacer_utc(date),
  public.visit_pacer_partner(text), public.visit_pacer_partner_type()
  to visit_pacer;

-- Row level security. Locking a row takes an UPDATE policy, or it is skipped without a word; the grants above say which commands there are.
-- On a table without row level security a policy sleeps, so that it is there when somebody turns it on.
do $$
declare
  t text;
  rows text;
begin
  foreach t in array array['visit_distribution', 'store_visits', 'visit_distribution_progress', 'visit_page_paths', 'visit_user_agents', 'visit_referrers',
    'visit_pacer_control', 'visit_pacer_agents', 'visit_pacer_canary', 'visit_pacer_deletions', 'visit_pacer_edits', 'visit_pacer_migrations'] loop
    rows := case t when 'store_visits' then 'distribution_id is not null' else 'true' end;
    execute format('drop policy if exists visit_pacer_agent on public.%I', t);
    execute format('create policy visit_pacer_agent on public.%I for all to visit_pacer using (%s) with check (%s)', t, rows, rows);
  end loop;
end $$;

commit;
