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
language sql stable set search_path = '' set timezone = 'UTC' as $$
  select case when public.visit_pacer_invalid(v.total_visits::numeric, v.visits_per_unit::numeric, v.time_period::text,
                     v.start_time::timestamptz, v.end_time::timestamptz, v.catch_up) is null
           then public.visit_pacer_due(public.visit_pacer_curve(v.anchor_units, v.anchor_at, v.is_active, v.total_visits::numeric,
                  v.visits_per_unit::numeric, v.time_period::text, v.start_time::timestamptz, v.end_time::timestamptz, at), v.total_visits::numeric)
         end
    from public.visit_distribution v where v.id = distribution
$$;
comment on function public.visit_distribution_due is 'visit-pacer: visits that are due at a moment; null for a row that is not there or not valid';

select public.visit_pacer_replace_object('view', 'visit_distribution_status');
create or replace view public.visit_distribution_status with (security_invoker = true) as
with row_at as (
  select v.id, v.partner_id, coalesce(v.is_active, false) as is_active, v.total_visits::numeric as total_visits,
         v.visits_per_unit::numeric as visits_per_unit, v.time_period::text as time_period, public.visit_pacer_utc(v.start_time) as start_time,
         public.visit_pacer_utc(v.end_time) as end_time, v.anchor_units, v.anchor_at, coalesce(v.catch_up, c.catch_up) as catch_up,
         c.paused as stopped, c.give_up_after, now_at,
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
  select r.id, r.partner_id, r.total_visits, r.is_active, r.start_time, r.end_time, r.now_at, r.stopped, r.give_up_after,
         coalesce(r.invalid, p.invalid_reason) as invalid, p.distributed, p.purged, p.baseline, p.missing, p.last_visited_at,
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
      when c.invalid is not null then 'invalid'
      when c.done >= c.total_visits then 'completed'
      when c.end_time + c.give_up_after <= c.now_at or (c.end_time <= c.now_at and c.due <= c.done) then 'ended'
      when not c.is_active then 'paused'
      when c.end_time <= c.now_at then 'draining'
      when c.start_time is null or c.start_time > c.now_at then 'scheduled'
      when c.due_before - c.done > c.rate + 1 then 'behind'
      else 'active'
    end as status
    from counted c
)
select j.id, j.partner_id, j.status,
  case
    when j.status = 'invalid' then j.invalid
    when j.status = 'ended' and j.backlog > 0 then format('%s visits were due and not stored when the time to catch up was over', j.backlog)
    when j.status = 'scheduled' and j.start_time is null then 'start_time is null'
    when j.status in ('behind', 'draining', 'active', 'scheduled') and j.stopped then 'stopped'
    when j.status in ('behind', 'draining') and not public.visit_pacer_agent_alive() then 'no agent'
    when j.status in ('behind', 'draining') and j.rate = 0 then 'the rate is 0, so what is owed is not caught up either'
    when j.status in ('behind', 'draining') and j.bucket_units is not null then 'bucket'
  end as reason,
  j.total_visits, j.due, j.distributed, j.backlog, j.purged, j.baseline, j.missing, j.last_visited_at as last_visit_at,
  case when j.status not in ('invalid', 'completed', 'ended', 'paused') and j.rate > 0 then
    (select case when m.at <= coalesce(j.end_time, 'infinity') then m.at end
       from (select greatest(j.anchor_at, j.start_time) + make_interval(secs => least(6300000000,
               greatest(0, ((j.total_visits - 0.5) * 86400000000 - j.anchor_units) / (j.rate * 86400000000)))::float8) as at) m)
  end as completes_at
from judged j;
comment on view public.visit_distribution_status is
  'visit-pacer: where each distribution stands now; exact, but for missing, which is as found by the last reconciliation';


select public.visit_pacer_replace_object('view', 'organic_store_visits');
create or replace view public.organic_store_visits with (security_invoker = true) as
  select * from public.store_visits where distribution_id is null;
comment on view public.organic_store_visits is 'visit-pacer: the visits that visit-pacer did not generate';

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000400') on conflict do nothing;
