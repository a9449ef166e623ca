-- visit-pacer 5 of 9: who looks sees why a row stands still; and counts that agree with what is stored.

create or replace function public.visit_pacer_agent_alive() returns boolean
language sql stable set search_path = '' as $$
  -- One that was seen in the future was seen before the clock was set back.
  select exists (select from public.visit_pacer_agents a
                  where a.seen_at between clock_timestamp() - interval '20 seconds' and clock_timestamp() + interval '1 second')
$$;
comment on function public.visit_pacer_agent_alive is 'visit-pacer: an agent was seen within 20 s';

select public.visit_pacer_make_room('function', 'visit_distribution_due', 'distribution uuid, at timestamp with time zone', 'bigint');
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

select public.visit_pacer_make_room('view', 'visit_distribution_status');
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

select public.visit_pacer_make_room('view', 'organic_store_visits');
create or replace view public.organic_store_visits with (security_invoker = true) as
  select * from public.store_visits where distribution_id is null;
comment on view public.organic_store_visits is 'visit-pacer: the visits that visit-pacer did not generate';

-- Counts one row again and makes its progress agree. The distribution row is locked first, in a statement of its own, so
-- that no batch is under way; the count is a later statement, with a snapshot of its own.
create or replace function public.visit_pacer_reconcile_row(distribution uuid, lower boolean)
returns table (partner_id uuid, counted_before bigint, counted_now bigint, missing bigint, message text)
language plpgsql set search_path = '' set timezone = 'UTC' as $$
declare
  held record;
  p public.visit_distribution_progress;
  counted bigint;
  highest bigint;
  gone bigint;
begin
  select v.partner_id as partner, v.end_time::timestamptz as end_time into held
    from public.visit_distribution v where v.id = distribution for no key update skip locked;
  if not found and exists (select from public.visit_distribution v where v.id = distribution) then
    select v.partner_id, q.distributed, q.distributed, q.missing, 'held by another transaction; looked at again by the next call'
      into partner_id, counted_before, counted_now, missing, message
      from public.visit_distribution v join public.visit_distribution_progress q on q.distribution_id = v.id where v.id = distribution;
    return next;
    return;
  end if;
  select * into p from public.visit_distribution_progress where distribution_id = distribution for update skip locked;
  if not found then
    return;
  end if;
  select count(*), coalesce(max(s.visit_number), 0) into counted, highest
    from public.store_visits s where s.distribution_id = distribution;
  counted := counted + p.purged + p.baseline;
  gone := greatest(p.distributed - counted, 0);
  partner_id := held.partner;
  counted_before := p.distributed;
  counted_now := p.distributed;
  missing := gone;
  if counted > p.distributed then
    counted_now := counted;
    message := format('%s visits were stored and not counted; they are counted now', counted - p.distributed);
  elsif gone > 0 and lower and held.partner is not null and (held.end_time is null or held.end_time > clock_timestamp()) then
    counted_now := counted;
    missing := 0;
    message := format('lowered: the %s missing visits are stored again at the pace of the row', gone);
  elsif gone > 0 then
    message := format('%s visits are missing from store_visits; select * from sync_distribution_counts(lower => true) has those of open windows stored again', gone);
  end if;
  update public.visit_distribution_progress q
     set distributed = counted_now, missing = visit_pacer_reconcile_row.missing, last_number = greatest(q.last_number, highest)
   where q.distribution_id = distribution;
  if message is not null then
    return next;
  end if;
end $$;
comment on function public.visit_pacer_reconcile_row is 'visit-pacer: makes the progress of one row agree with what is stored';

-- Of these rows, those whose progress and stored visits differ, or did when they were looked at last. Read-only, one
-- snapshot: since batches are atomic, a difference here is one.
create or replace function public.visit_pacer_uncounted(distributions uuid[]) returns setof uuid
language sql stable set search_path = '' as $$
  select p.distribution_id from public.visit_distribution_progress p
   where p.distribution_id = any (distributions)
     and (p.missing > 0 or p.distributed <> p.purged + p.baseline
            + (select count(*) from public.store_visits s where s.distribution_id = p.distribution_id))
   order by p.distribution_id
$$;
comment on function public.visit_pacer_uncounted is 'visit-pacer: the rows whose progress and stored visits differ';

select public.visit_pacer_make_room('function', 'sync_distribution_counts', 'lower boolean',
  'TABLE(distribution_id uuid, partner_id uuid, counted_before bigint, counted_now bigint, missing bigint, message text)');
create or replace function public.sync_distribution_counts(lower boolean default false)
returns table (distribution_id uuid, partner_id uuid, counted_before bigint, counted_now bigint, missing bigint, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  differing uuid;
begin
  perform public.visit_pacer_initialise();
  for differing in
    select u from public.visit_pacer_uncounted((select array_agg(v.id) from public.visit_distribution v)) u
  loop
    return query select differing, r.* from public.visit_pacer_reconcile_row(differing, sync_distribution_counts.lower) r;
  end loop;
  -- What the user's own column says, where it is behind.
  with held as (
    select v.id, p.distributed from public.visit_distribution v join public.visit_distribution_progress p on p.distribution_id = v.id
     where v.total_distributed is distinct from p.distributed
     order by v.last_distribution nulls first, v.id
     limit case when public.visit_pacer_agent_alive() then 20 end   -- beside an agent, which tells by the echo budget: its burst
       for no key update of v skip locked)
  update public.visit_distribution v set total_distributed = held.distributed from held where v.id = held.id;
  return query
    select v.id, v.partner_id, p.distributed, p.distributed, p.missing,
           format('the partner has visits in this window that belong to no distribution; select * from adopt_existing_visits(%L) counts them in', v.partner_id)
      from public.visit_distribution v join public.visit_distribution_progress p on p.distribution_id = v.id
     where exists (select from public.store_visits s where s.partner_id = v.partner_id and s.distribution_id is null
                      and s.visited_at >= v.start_time and s.visited_at < coalesce(v.end_time, 'infinity'))
     order by v.id;
end $$;
comment on function public.sync_distribution_counts is 'visit-pacer: makes the counters agree with the visits that are stored';

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000500') on conflict do nothing;
