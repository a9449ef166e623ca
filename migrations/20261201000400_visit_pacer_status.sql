-- visit-pacer 4 of 7: the status of each distribution.

create or replace function public.visit_pacer_agent_alive() returns boolean
language sql stable set search_path = '' as $$
  -- One that was seen in the future was seen before the clock was set back.
  select exists (select from public.visit_pacer_agents a
                  where a.last_heartbeat_at between clock_timestamp() - interval '20 seconds' and clock_timestamp() + interval '1 second')
$$;
comment on function public.visit_pacer_agent_alive is 'visit-pacer: an agent was seen within 20 s';

select public.visit_pacer_replace_object('function', 'visit_distribution_due', 'distribution uuid, at timestamp with time zone', 'bigint');
create or replace function public.visit_distribution_due(distribution uuid, at timestamptz default clock_timestamp()) returns bigint
language sql stable set search_path = '' as $$
  select case when public.visit_pacer_invalid(v.total_visits::numeric, v.visits_per_unit::numeric, v.time_period::text,
                     public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), v.catch_up) is null
           then public.visit_pacer_due(public.visit_pacer_curve(v.anchor_units, v.anchor_at, v.is_active, v.total_visits::numeric,
                  v.visits_per_unit::numeric, v.time_period::text, public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), at), v.total_visits::numeric)
         end
    from public.visit_distribution v where v.id = distribution
$$;
comment on function public.visit_distribution_due is 'visit-pacer: visits that are due at a moment; null for a row that is not there or not valid';

select public.visit_pacer_replace_object('view', 'visit_distribution_status');
-- The view selects from a function, whose text depends on nothing: columns of the user's table may be altered. Without a SET clause the
-- function is inlined, so that a condition on the view reaches the tables.
create or replace function public.visit_pacer_statuses()
returns table (id uuid, partner_id public.partners.id%type, status text, reason text, total_visits numeric, due bigint, distributed bigint,
               backlog bigint, purged bigint, baseline bigint, missing bigint, last_visit_at timestamptz, completes_at timestamptz,
               reason_code text, reason_detail jsonb)
language sql stable as $$
with row_at as (
  select v.id, v.partner_id, coalesce(v.is_active, false) as is_active, v.total_visits::numeric as total_visits,
         v.visits_per_unit::numeric as visits_per_unit, v.time_period::text as time_period, public.visit_pacer_utc(v.start_time) as start_time,
         public.visit_pacer_utc(v.end_time) as end_time, v.anchor_units, v.anchor_at, coalesce(v.catch_up, c.catch_up) as catch_up,
         c.paused as all_paused, c.give_up_after, now_at,
         public.visit_pacer_invalid(v.total_visits::numeric, v.visits_per_unit::numeric, v.time_period::text,
           public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), v.catch_up) as invalid
    from public.visit_distribution v
    cross join (select clock_timestamp() as now_at offset 0) clock
    cross join (select * from public.visit_pacer_control limit 1) c  -- one row, and the planner knows it
), paced as (
  select r.*, r.visits_per_unit / public.visit_pacer_unit_seconds(r.time_period) as rate,
         public.visit_pacer_curve(r.anchor_units, r.anchor_at, r.is_active, r.total_visits, r.visits_per_unit, r.time_period,
           r.start_time, r.end_time, r.now_at) as curve_now,
         public.visit_pacer_curve(r.anchor_units, r.anchor_at, r.is_active, r.total_visits, r.visits_per_unit, r.time_period,
           r.start_time, r.end_time, r.now_at - interval '3 seconds') as curve_before
    from row_at r where r.invalid is null
), counted as (
  select r.id, r.partner_id, r.total_visits, r.is_active, r.start_time, r.end_time, r.now_at, r.all_paused, r.give_up_after,
         r.invalid, case when p.reason_code = 'insert_failed' then p.reason_detail end as insert_failure, p.distributed, p.purged, p.baseline, p.missing, p.last_visited_at,
         p.bucket_units, q.rate, r.catch_up, q.anchor_units, q.anchor_at,
         coalesce(p.distributed, 0) as done,
         public.visit_pacer_due(q.curve_now, q.total_visits) as due,
         public.visit_pacer_due(q.curve_before, q.total_visits) as due_before
    from row_at r
    left join paced q on q.id = r.id
    left join public.visit_distribution_progress p on p.distribution_id = r.id
), judged as (
  select c.*, greatest(c.due - c.done, 0) as backlog,
    case
      when (c.invalid).code is not null or c.insert_failure is not null then 'invalid'
      when c.done >= c.total_visits then 'completed'
      when c.end_time + c.give_up_after <= c.now_at or (c.end_time <= c.now_at and c.due <= c.done) then 'ended'
      when not c.is_active then 'paused'
      when c.end_time <= c.now_at then 'draining'
      when c.start_time is null or c.start_time > c.now_at then 'scheduled'
      when c.due_before - c.done > c.rate + 1 then 'behind'
      else 'active'
    end as status
    from counted c
), explained as (
  select j.*, case
      when j.status = 'invalid' then coalesce((j.invalid).code, 'insert_failed')
      when j.status = 'ended' and j.backlog > 0 then 'given_up'
      when j.status = 'scheduled' and j.start_time is null then 'start_time_null'
      when j.status in ('behind', 'draining', 'active', 'scheduled') and j.all_paused then 'all_paused'
      when j.status in ('behind', 'draining') and not (select public.visit_pacer_agent_alive()) then 'no_agent'
      when j.status in ('behind', 'draining') and (j.rate = 0 or j.bucket_units is not null) then 'token_bucket'
    end as reason_code
    from judged j
)
select j.id, j.partner_id, j.status,
  case j.reason_code
    when 'invalid_value' then public.visit_pacer_reason_text(j.invalid)
    when 'insert_failed' then j.insert_failure ->> 'message'
    when 'given_up' then format('%s visits were due and not stored when the time to catch up was over', j.backlog)
    when 'start_time_null' then 'start_time is null: it never starts'
    when 'all_paused' then 'everything is paused: visit-pacer resume --all'
    when 'no_agent' then 'no agent is running: start one with visit-pacer run'
    when 'token_bucket' then case when j.rate = 0 then 'the rate is 0, so the backlog does not drain'
                                  else format('catching up at %s times the rate', trim_scale(j.catch_up)) end
  end as reason,
  j.total_visits, j.due, j.distributed, j.backlog, j.purged, j.baseline, j.missing, j.last_visited_at as last_visit_at,
  case when j.status not in ('invalid', 'completed', 'ended', 'paused') and j.rate > 0 then
    (select case when m.at <= coalesce(j.end_time, 'infinity') then m.at end
       from (select greatest(j.anchor_at, j.start_time) + make_interval(secs => least(6300000000,
               greatest(0, ((j.total_visits - 0.5) * 86400000000 - j.anchor_units) / (j.rate * 86400000000)))::float8) as at) m)
  end as completes_at,
  j.reason_code,
  case j.reason_code
    when 'invalid_value' then jsonb_build_object('column', (j.invalid).column_name, 'message', (j.invalid).message, 'hint', (j.invalid).hint)
    when 'insert_failed' then j.insert_failure
    when 'given_up' then jsonb_build_object('not_stored', j.backlog)
    when 'token_bucket' then jsonb_build_object('visits_per_second', trim_scale(j.catch_up * j.rate))
  end as reason_detail
from explained j
$$;
comment on function public.visit_pacer_statuses is 'visit-pacer: the rows of visit_distribution_status';

create or replace view public.visit_distribution_status with (security_invoker = true) as select * from public.visit_pacer_statuses();
comment on view public.visit_distribution_status is
  'visit-pacer: where each distribution stands now; exact, but for missing, which is as found by the last reconciliation';


select public.visit_pacer_replace_object('view', 'organic_store_visits');
-- The view of the visits that visit-pacer did not generate. It selects from a function whose text names the columns, so that nothing depends
-- on the user's table: columns may be altered and dropped. It is made again, by visit_pacer_refresh_columns(), when they have changed.
create or replace function public.visit_pacer_define_organic() returns void
language plpgsql set search_path = '' as $do$
declare
  columns text;
  names text;
  grants text;
begin
  select pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum),
         pg_catalog.string_agg(pg_catalog.format('v.%I', a.attname), ', ' order by a.attnum)
    into columns, names from pg_catalog.pg_attribute a
   where a.attrelid = 'public.store_visits'::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped;
  select public.visit_pacer_grant_statements('table public.organic_store_visits', c.relacl) into grants
    from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass('public.organic_store_visits');
  drop view if exists public.organic_store_visits;
  drop function if exists public.visit_pacer_organic_visits();
  execute pg_catalog.format($function$
    create or replace function public.visit_pacer_organic_visits() returns table (%s) language sql stable as $select$
      select %s from public.store_visits v where v.distribution_id is null
    $select$
  $function$, columns, names);
  comment on function public.visit_pacer_organic_visits is 'visit-pacer: the rows of organic_store_visits';
  create or replace view public.organic_store_visits with (security_invoker = true) as select * from public.visit_pacer_organic_visits();
  comment on view public.organic_store_visits is 'visit-pacer: the visits that visit-pacer did not generate';
  execute coalesce(grants, '');
exception when dependent_objects_still_exist then
  raise warning 'visit-pacer: organic_store_visits keeps its columns, since other objects depend on it (%)', sqlerrm;
end $do$;
comment on function public.visit_pacer_define_organic is 'visit-pacer: makes organic_store_visits for the columns of store_visits';

-- Adapts the write and the view to the columns that store_visits has now; true if they had changed. Called by every sync, and after a write
-- that failed for a missing column. SECURITY DEFINER: an agent's role owns no function.
create or replace function public.visit_pacer_refresh_columns() returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  made_for constant text := coalesce(pg_catalog.obj_description(pg_catalog.to_regproc('public.visit_pacer_store'), 'pg_proc'), '');
  present constant text := 'visit-pacer: stores a batch of visits; made for the columns ' || (
    select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.format('%s %s %s %s %s %s %s', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated,
             a.attidentity, a.attnotnull and not a.atthasdef), ',' order by a.attnum))
      from pg_catalog.pg_attribute a
     where a.attrelid = 'public.store_visits'::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped);
begin
  if made_for = present or (
       select pg_catalog.count(*) from public.visit_pacer_visit_columns() c
        where c.name in ('distribution_id', 'partner_id', 'visit_number', 'visited_at')) < 4 then
    return false;  -- without one of these the write is to fail, with the name of the column
  end if;
  perform pg_catalog.pg_advisory_xact_lock(4702394921427289965);  -- one session at a time replaces the functions
  perform public.visit_pacer_define_store();
  perform public.visit_pacer_define_organic();
  perform public.visit_pacer_revoke_public();
  execute pg_catalog.format('comment on function public.visit_pacer_store is %L', present);
  return true;
end $$;
comment on function public.visit_pacer_refresh_columns is 'visit-pacer: adapts the write and the view to the columns of store_visits';
select public.visit_pacer_refresh_columns();

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000400') on conflict do nothing;
