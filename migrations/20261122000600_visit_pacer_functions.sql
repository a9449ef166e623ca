-- visit-pacer 7 of 9: the functions of the guide. They store through visit_pacer_store() as the agent does: same locks, same
-- compare-and-set, same numbers, one bucket a row. So any number of them may run beside each other and beside agents.
--
-- Whoever writes progress here has locked the distribution row before, in an earlier statement or in the same one. Nothing
-- here waits for a lock, but for visit_pacer_hold(), which gives up after half a second. SECURITY DEFINER, so that
-- service_role needs no rights on the tables; nobody else may call them (visit_pacer_keep_private).

-- Curve units per microsecond. A visit is 86,400,000,000 units, whatever the time_period: finite decimals.
create or replace function public.visit_pacer_slope(visits_per_unit numeric, time_period text) returns numeric
language sql stable parallel safe as $$
  select visits_per_unit * trunc(86400 / public.visit_pacer_unit_seconds(time_period))
$$;
comment on function public.visit_pacer_slope is 'visit-pacer: curve units per microsecond';

-- Quotient of two numbers that are not negative, rounded up. Exact: div() and mod() are.
create or replace function public.visit_pacer_ceil(dividend numeric, divisor numeric) returns numeric
language sql stable parallel safe as $$ select div(dividend, divisor) + sign(mod(dividend, divisor)) $$;
comment on function public.visit_pacer_ceil is 'visit-pacer: an exact quotient, rounded up';

-- Level of a row's bucket at a moment, in curve units: it fills at catch_up × rate, and holds one second of that (rounded up
-- to whole visits) and one visit. Never filled yet: full. A moment before the last one fills nothing.
create or replace function public.visit_pacer_bucket(bucket_units numeric, bucket_at timestamptz, slope numeric, catch_up numeric,
  at timestamptz) returns numeric
language sql stable parallel safe as $$
  select least((public.visit_pacer_ceil(catch_up * slope * 1000000, 86400000000) + 1) * 86400000000,
    case when bucket_at is not null   -- least() passes over a null
      then bucket_units + catch_up * slope * greatest(0, public.visit_pacer_micros(at) - public.visit_pacer_micros(bucket_at)) end)
$$;
comment on function public.visit_pacer_bucket is 'visit-pacer: level of a row''s token bucket at a moment, in curve units';

-- visited_at of the first `taken` of `visits` visits, of which `first` is the first in the order of distribution. With
-- m(k) the moment when the curve reaches k - 1/2: a visit whose m(k) lies in [floor, cut] gets it; each run of visits without
-- one is spread evenly between its neighbours' moments; all get the floor where that is after the cut. A curve that begins
-- after the cut (the end was moved before it) has no moments of its own. Exact: div() only.
create or replace function public.visit_pacer_moments(slope numeric, anchor_units numeric, from_at timestamptz,
  last_visited_at timestamptz, cut timestamptz, first bigint, visits bigint, taken bigint)
returns table (nth bigint, moment timestamptz)
language sql stable parallel safe as $$
  with span as (
    select f.floor_at, public.visit_pacer_micros(f.floor_at) - public.visit_pacer_micros(from_at) as floor_micros,
           greatest(0, public.visit_pacer_micros(cut) - public.visit_pacer_micros(f.floor_at)) as width
      from (select greatest(last_visited_at, case when from_at <= cut then from_at end, cut - interval '120 seconds') as floor_at) f
  ), own as (   -- the visits from `low` to `high` have a moment of their own
    select s.*,
           greatest(first, public.visit_pacer_ceil(2 * (anchor_units + slope * s.floor_micros) + 86400000000, 172800000000)) as low,
           least(first + visits, public.visit_pacer_ceil(2 * (anchor_units + slope * (s.floor_micros + s.width + 1)) + 86400000000,
                                                         172800000000)) - 1 as high
      from span s where s.floor_at <= cut and from_at <= cut
    union all
    select s.*, first + visits, first - 1 from span s where (s.floor_at <= cut and from_at <= cut) is not true
  ), ends as (  -- the moments of these two, in microseconds after the floor
    select o.*,
           case when o.low <= o.high then div(172800000000 * o.low - 86400000000 - 2 * anchor_units, 2 * slope) - o.floor_micros end as low_at,
           case when o.low <= o.high then div(172800000000 * o.high - 86400000000 - 2 * anchor_units, 2 * slope) - o.floor_micros end as high_at
      from own o
  )
  select n, e.floor_at + interval '1 microsecond' * (
           case
             when k between e.low and e.high then div(172800000000 * k - 86400000000 - 2 * anchor_units, 2 * slope) - e.floor_micros
             when e.low > e.high then div(e.width * n, visits + 1)
             when k < e.low then div(e.low_at * n, e.low - first + 1)
             else e.high_at + div((e.width - e.high_at) * (k - e.high), first + visits - e.high)
           end)::float8   -- at most 120 s of microseconds: exact
    from ends e cross join generate_series(1, taken) n cross join lateral (select (first + n - 1)::numeric as k) visit
$$;
comment on function public.visit_pacer_moments is 'visit-pacer: visited_at of the visits of a batch';

-- Every active row as it stands at a moment. `closed` says why nothing may be stored for it; `failed`, that its last insert
-- failed less than a minute ago and it has not been edited since.
create or replace function public.visit_pacer_active(at timestamptz)
returns table (id uuid, partner_id uuid, config_version bigint, distributed bigint, last_number bigint, remaining bigint, backlog bigint,
               slope numeric, catch_up numeric, anchor_units numeric, from_at timestamptz, end_time timestamptz, last_visited_at timestamptz,
               bucket_units numeric, bucket_at timestamptz, invalid text, failed text, closed text)
language sql stable as $$
  select v.id, v.partner_id, v.config_version, p.distributed, p.last_number, r.remaining, r.backlog,
         r.slope, coalesce(v.catch_up, c.catch_up), v.anchor_units, greatest(v.anchor_at, v.start_time::timestamptz),
         v.end_time::timestamptz, p.last_visited_at, p.bucket_units, p.bucket_at, i.invalid,
         case when p.invalid_at > at - interval '60 seconds' and public.visit_pacer_micros(p.invalid_at) > v.config_version
              then p.invalid_reason end,
         case
           when i.invalid is not null then i.invalid
           when v.anchor_at is null or p.distribution_id is null then 'held by another transaction; tried again at the next call'
           when r.remaining <= 0 then 'completed'
           when v.start_time is null then 'start_time is null: it never starts'
           when v.start_time > at then format('starts at %s', v.start_time)
           when v.end_time + c.give_up_after <= at
             then format('ended; %s visits were due and not stored when the time to catch up was over', r.backlog)
         end
    from public.visit_distribution v
    cross join (select * from public.visit_pacer_control limit 1) c  -- one row, and the planner knows it
    left join public.visit_distribution_progress p on p.distribution_id = v.id
    cross join lateral (
      select public.visit_pacer_invalid(v.total_visits::numeric, v.visits_per_unit::numeric, v.time_period::text,
               v.start_time::timestamptz, v.end_time::timestamptz, v.catch_up) as invalid) i
    left join lateral (
      select v.total_visits::bigint - p.distributed as remaining,
             greatest(0, public.visit_pacer_due(public.visit_pacer_curve(v.anchor_units, v.anchor_at, v.is_active, v.total_visits::numeric,
               v.visits_per_unit::numeric, v.time_period::text, v.start_time::timestamptz, v.end_time::timestamptz, at),
               v.total_visits::numeric) - p.distributed) as backlog,
             public.visit_pacer_slope(v.visits_per_unit::numeric, v.time_period::text) as slope) r on i.invalid is null
   where v.is_active
$$;
comment on function public.visit_pacer_active is 'visit-pacer: the active rows as they stand at a moment';

-- One statement's worth: stores up to its share of each of these rows, and says how many were stored of how many.
-- Never more than is due, nor, beside a live agent, than the row's bucket holds; by hand, up to the total while the window is
-- open, and the bucket stays as it is.
create or replace function public.visit_pacer_batch(ids uuid[], shares bigint[], by_hand boolean)
returns table (id uuid, asked bigint, stored bigint)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  row_visits constant bigint := 1000;
  cut_at constant timestamptz := clock_timestamp();
  bucket_binds constant boolean := not by_hand and public.visit_pacer_agent_alive();
begin
  return query
  with batch as materialized (
    select r.*, least(cut_at, r.end_time) as cut, f.level, n.visits, least(n.visits, row_visits) as taken
      from unnest(ids, shares) as s (id, share)
      join public.visit_pacer_active(cut_at) r on r.id = s.id
      cross join lateral (select public.visit_pacer_bucket(r.bucket_units, r.bucket_at, r.slope, r.catch_up, cut_at) as level) f
      cross join lateral (
        select least(s.share, case when by_hand then r.remaining when bucket_binds then least(r.backlog, div(f.level, 86400000000))
                                   else r.backlog end)::bigint as visits) n
     where r.closed is null and n.visits > 0 and not (by_hand and coalesce(r.end_time <= cut_at, false))
  ), dated as materialized (
    select b.id, b.partner_id, b.last_number + m.nth as number, m.moment
      from batch b cross join lateral public.visit_pacer_moments(b.slope, b.anchor_units, b.from_at, b.last_visited_at, b.cut,
                                                                 b.distributed + 1, b.visits, b.taken) m
  ), visits as (
    select array_agg(g.distribution_id) as rows, array_agg(g.partner_id) as partners, array_agg(g.visit_number) as numbers,
           array_agg(g.id) as ids, array_agg(g.visited_at) as moments, array_agg(g.session_duration) as durations,
           array_agg(g.page_path) as paths, array_agg(g.user_agent) as agents, array_agg(g.referrer) as referrers,
           array_agg(g.device_type) as devices
      from (select array_agg(d.id) as ids, array_agg(d.partner_id) as partners, array_agg(d.number) as numbers,
                   array_agg(d.moment) as moments from dated d) a
      cross join lateral (select * from public.visit_pacer_generate(a.ids, a.partners, a.numbers, a.moments) v
                           order by v.visited_at, v.visit_number) g
  ), advances as (
    select array_agg(b.id) as ids, array_agg(b.config_version) as versions, array_agg(b.last_number) as last_numbers,
           array_agg(b.distributed) as distributed, array_agg(b.bucket_at) as bucket_at_before, array_agg(b.taken::integer) as counts,
           array_agg(b.cut) as cuts, array_agg(l.last_visited_at) as last_visited_at,
           array_agg(case when by_hand then b.bucket_units else greatest(0, b.level - b.taken * 86400000000) end) as bucket_units,
           array_agg(case when by_hand then b.bucket_at else greatest(b.bucket_at, cut_at) end) as bucket_at
      from batch b join (select d.id, max(d.moment) as last_visited_at from dated d group by d.id) l on l.id = b.id
  ), stored as materialized (
    select s.id
      from advances a cross join visits v
      cross join lateral public.visit_pacer_store(a.ids, a.versions, a.last_numbers, a.distributed, a.bucket_at_before, a.counts, a.cuts,
        a.last_visited_at, a.bucket_units, a.bucket_at, v.rows, v.partners, v.numbers, v.ids, v.moments, v.durations, v.paths,
        v.agents, v.referrers, v.devices) as s (id)
  )
  select b.id, b.taken, case when b.id in (select stored.id from stored) then b.taken else 0 end from batch b;
end $$;
comment on function public.visit_pacer_batch is 'visit-pacer: one statement''s worth of visits';

-- A batch that lets no row's failing insert stop the others: where it fails it is halved, until one row is left, which is then
-- set aside with the database's message. What is nobody's fault (a deadlock, a full disk, a lock_timeout) sets no row aside.
create or replace function public.visit_pacer_attempt(ids uuid[], shares bigint[], by_hand boolean)
returns table (id uuid, stored bigint, trouble text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  half constant integer := cardinality(ids) / 2;
  failure text;
  passing boolean;
begin
  begin
    return query
      select b.id, b.stored, case when b.stored < b.asked then 'held by another transaction; tried again at the next call' end
        from public.visit_pacer_batch(ids, shares, by_hand) b;
    return;
  exception when others then
    failure := sqlerrm;
    passing := left(sqlstate, 2) in ('08', '40', '53', '55', '57', '58', 'XX');
  end;
  if half > 0 then
    return query select a.* from public.visit_pacer_attempt(ids[:half], shares[:half], by_hand) a;
    return query select a.* from public.visit_pacer_attempt(ids[half + 1:], shares[half + 1:], by_hand) a;
    return;
  end if;
  perform from public.visit_distribution v where v.id = ids[1] for no key update skip locked;
  if found and not passing then
    update public.visit_distribution_progress p set invalid_reason = failure, invalid_at = clock_timestamp()
     where p.distribution_id = ids[1];
  end if;
  return query select ids[1], 0::bigint, failure;
end $$;
comment on function public.visit_pacer_attempt is 'visit-pacer: a batch in which a failing row does not stop the others';

-- Stores each row's share, in statements of bounded size: the rows take turns, in the order given, so that one with much to
-- catch up never keeps the others waiting. No statement but the first begins after `until`. Returns every row of `ids`.
create or replace function public.visit_pacer_distribute(ids uuid[], shares bigint[], by_hand boolean, until timestamptz)
returns table (id uuid, added bigint, trouble text)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  row_visits constant bigint := 1000;
  statement_visits constant bigint := 2000;
  rows constant integer := coalesce(cardinality(ids), 0);
  wanting bigint[] := shares;
  sums bigint[] := array_fill(0::bigint, array[rows]);
  troubles text[] := array_fill(null::text, array[rows]);
  turns integer[] := array_fill(0, array[rows]);
  wave integer[];
  got record;
begin
  loop  -- ends: each turn takes visits off a row's share, or ends the row
    select array_agg(w.place order by w.turn, w.place) into wave
      from (select t.place, t.turn, sum(least(t.wanting, row_visits)) over (order by t.turn, t.place) as visits
              from unnest(wanting, turns) with ordinality as t (wanting, turn, place) where t.wanting > 0) w
     where w.visits <= statement_visits;
    exit when wave is null;
    for got in
      select w.place, coalesce(a.stored, 0) as stored, a.trouble
        from unnest(wave) as w (place)
        left join public.visit_pacer_attempt((select array_agg(ids[p]) from unnest(wave) p),
                                             (select array_agg(wanting[p]) from unnest(wave) p), by_hand) a on a.id = ids[w.place]
    loop
      wanting[got.place] := case when got.stored > 0 then wanting[got.place] - got.stored else 0 end;
      sums[got.place] := sums[got.place] + got.stored;
      troubles[got.place] := got.trouble;
      turns[got.place] := turns[got.place] + 1;
    end loop;
    exit when clock_timestamp() >= until;
  end loop;
  return query select r.* from unnest(ids, sums, troubles) as r (id, added, trouble);
end $$;
comment on function public.visit_pacer_distribute is 'visit-pacer: stores each row''s share';

-- Tells the user's own columns what was stored: completions, and the rows that were told longest ago, as many as the burst of
-- the echo budget. Beside a live agent, which has the budget in hand, completions only.
create or replace function public.visit_pacer_tell(ids uuid[], completions_only boolean) returns void
language plpgsql set search_path = '' as $$
declare
  burst constant integer := 20;
begin
  with held as (
    select v.id, p.distributed
      from public.visit_distribution v join public.visit_distribution_progress p on p.distribution_id = v.id
     where v.id = any (ids) and v.total_distributed is distinct from p.distributed
       and (p.distributed >= v.total_visits or not completions_only)
     order by p.distributed >= v.total_visits desc, v.last_distribution nulls first, v.id
     limit burst for no key update of v skip locked)
  update public.visit_distribution v set total_distributed = held.distributed, last_distribution = clock_timestamp()
    from held where v.id = held.id;
exception when others then
  raise warning 'visit-pacer: visits are stored; total_distributed could not be written: %', sqlerrm;
end $$;
comment on function public.visit_pacer_tell is 'visit-pacer: writes total_distributed back';

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

-- How many visits of each row a call may store: what is due, within its bucket beside a live agent, else within 15 minutes' worth;
-- shared max-min fairly where max_visits binds. The rows that were served longest ago come first, and get what does not divide.
create or replace function public.visit_pacer_shares(at timestamptz, max_visits bigint)
returns table (id uuid, share bigint)
language sql stable set search_path = '' as $$
  with wants as (
    select r.id, r.last_visited_at,
           least(r.backlog, case when agent.alive
             then div(public.visit_pacer_bucket(r.bucket_units, r.bucket_at, r.slope, r.catch_up, at), 86400000000)
             else public.visit_pacer_ceil(r.slope * 900000000, 86400000000) end) as want
      from public.visit_pacer_active(at) r cross join (select public.visit_pacer_agent_alive() as alive) agent
     where r.closed is null and r.failed is null
  ), ranked as (
    select w.*, count(*) over () - row_number() over by_want + 1 as others,    -- it, and those that want more
           max_visits - (sum(w.want) over by_want - w.want) as rest            -- what those that want less leave
      from wants w where w.want > 0 window by_want as (order by w.want, w.last_visited_at nulls first, w.id)
  ), binding as (
    select div(r.rest, r.others) as level, mod(r.rest, r.others) as odd
      from ranked r where r.want * r.others > r.rest order by r.others desc limit 1
  )
  select s.id, s.share::bigint
    from (select r.id, r.last_visited_at,
                 least(r.want, coalesce(b.level, r.want)
                   + case when row_number() over (partition by r.want > b.level order by r.last_visited_at nulls first, r.id) <= b.odd
                          then 1 else 0 end) as share
            from ranked r left join binding b on true) s
   where s.share > 0 order by s.last_visited_at nulls first, s.id
$$;
comment on function public.visit_pacer_shares is 'visit-pacer: how many visits of each row a call may store';

select public.visit_pacer_make_room('function', 'distribute_visits', 'max_visits integer',
  'TABLE(partner_id uuid, visits_added bigint, total_distributed_now numeric, message text)');
create or replace function public.distribute_visits(max_visits integer default 10000)
returns table (partner_id uuid, visits_added bigint, total_distributed_now numeric, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  work constant interval := '500 milliseconds';
  began constant timestamptz := clock_timestamp();
  beside_agent constant boolean := public.visit_pacer_agent_alive();
  stopped boolean;
  ids uuid[];
  shares bigint[];
  sums bigint[];
  troubles text[];
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  stopped := not public.visit_pacer_may_store();
  if not stopped then
    select array_agg(s.id), array_agg(s.share) into ids, shares
      from public.visit_pacer_shares(began, greatest(0, coalesce(max_visits, 10000))) s;
    select array_agg(d.id), array_agg(d.added), array_agg(d.trouble) into ids, sums, troubles
      from public.visit_pacer_distribute(ids, shares, false, began + work) d;
    perform public.visit_pacer_tell(array(select t.id from unnest(ids, sums) as t (id, added) where t.added > 0), beside_agent);
  end if;
  return query
    select r.partner_id, coalesce(t.added, 0), coalesce(r.distributed, 0)::numeric,
           case
             when r.invalid is not null then r.invalid
             when r.closed is not null then r.closed || '; owed: 0'
             when r.backlog = 0 then 'owed: 0'
             else coalesce(case when stopped then 'stopped: visit_pacer_control.paused is set' end, t.trouble, r.failed || '; tried again every 60 s',
                           case when beside_agent then 'the rest comes at the pace of the row''s bucket' else 'the rest comes with the next calls' end)
                  || format('; owed: %s', r.backlog)
           end
      from public.visit_pacer_active(began) r
      left join unnest(ids, sums, troubles) as t (id, added, trouble) on t.id = r.id
     order by r.partner_id, r.id;
end $$;
comment on function public.distribute_visits is
  'visit-pacer: stores what is due now, at most so many visits and 500 ms of work; the message says what is still owed';

select public.visit_pacer_make_room('function', 'distribute_visits_for_partner', 'partner uuid, visits integer',
  'TABLE(partner_id uuid, visits_added bigint, total_distributed_now numeric, message text)');
create or replace function public.distribute_visits_for_partner(partner uuid, visits integer)
returns table (partner_id uuid, visits_added bigint, total_distributed_now numeric, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  at_once constant integer := 10000;
  began constant timestamptz := clock_timestamp();
  asked constant bigint := least(visits, at_once);
  refusal text;
  ids uuid[];
  shares bigint[];
  sums bigint[];
  troubles text[];
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  refusal := case
    when partner is null then 'partner is null; name the partner by its id'
    when coalesce(visits, 0) <= 0 then format('visits is %s; use a number from 1 to %s', coalesce(visits::text, 'null'), at_once)
    when not exists (select from public.partners p where p.id = partner) then format('there is no partner %s; see: select id from partners', partner)
    when not exists (select from public.visit_distribution v where v.partner_id = partner and v.is_active)
      then 'this partner has no active distribution; insert one, or set is_active on one'
    when not public.visit_pacer_may_store() then 'stopped: visit_pacer_control.paused is set'
  end;
  if refusal is not null then
    return query select partner, 0::bigint, 0::numeric, refusal;
    return;
  end if;
  -- In proportion to what each has left; the largest remainders get what does not divide.
  with chosen as (
    select r.id, r.remaining, sum(r.remaining) over () as all_remaining
      from public.visit_pacer_active(began) r
     where r.partner_id = partner and r.closed is null and (r.end_time <= began) is not true
  ), divided as (
    select c.*, least(asked, c.all_remaining) as given, div(least(asked, c.all_remaining) * c.remaining, c.all_remaining) as whole,
           mod(least(asked, c.all_remaining) * c.remaining, c.all_remaining) as remainder
      from chosen c
  ), shared as (
    select d.id, d.whole + case when row_number() over (order by d.remainder desc, d.id) <= d.given - sum(d.whole) over () then 1 else 0 end as share
      from divided d
  )
  select array_agg(s.id order by s.id), array_agg(s.share::bigint order by s.id) into ids, shares from shared s where s.share > 0;
  select array_agg(d.id), array_agg(d.added), array_agg(d.trouble) into ids, sums, troubles
    from public.visit_pacer_distribute(ids, shares, true, 'infinity') d;
  perform public.visit_pacer_tell(array(select t.id from unnest(ids, sums) as t (id, added) where t.added > 0), false);
  return query
    select r.partner_id, coalesce(t.added, 0), coalesce(r.distributed, 0)::numeric,
           coalesce(t.trouble, case when t.added > 0 then format('added by hand; %s left of its total', r.remaining) end, r.closed,
                    case when r.end_time <= began then 'its window is over' else 'nothing fell to it' end)
           || case when visits > at_once then format('; at most %s at once', at_once) else '' end
      from public.visit_pacer_active(began) r
      left join unnest(ids, sums, troubles) as t (id, added, trouble) on t.id = r.id
     where r.partner_id = partner
     order by r.id;
end $$;
comment on function public.distribute_visits_for_partner is
  'visit-pacer: adds so many visits at once, over the partner''s active distributions in proportion to what each has left';

-- Locks a distribution row that may be gone, so that its progress may be written. Gives up where somebody holds it for long.
create or replace function public.visit_pacer_hold(distribution uuid) returns boolean
language plpgsql set search_path = '' set lock_timeout = '500ms' as $$
begin
  perform from public.visit_distribution v where v.id = distribution for no key update;
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end $$;
comment on function public.visit_pacer_hold is 'visit-pacer: locks a distribution row; false where somebody holds it for long';

select public.visit_pacer_make_room('function', 'purge_old_visits', 'keep interval', 'TABLE(distribution_id uuid, purged bigint)');
create or replace function public.purge_old_visits(keep interval)
returns table (distribution_id uuid, purged bigint)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  chunk constant integer := 10000;
  chunks constant integer := 100;       -- at most a million visits a call: one transaction
  work constant interval := '20 seconds';
  began constant timestamptz := clock_timestamp();
  before constant timestamptz := began - keep;
  chunks_done integer := 0;
  deleted bigint;
begin
  perform public.visit_pacer_require_read_committed();
  if keep is null or before > began then
    raise exception using errcode = 'invalid_parameter_value', message = format('purge_old_visits: keep is %s', coalesce(keep::text, 'null')),
      hint = 'say how long visits are kept, such as: select * from purge_old_visits(interval ''90 days'')';
  end if;
  for distribution_id in select p.distribution_id from public.visit_distribution_progress p order by p.distribution_id loop
    exit when chunks_done >= chunks or clock_timestamp() - began >= work;
    purged := 0;
    begin
      -- The visits first, the row last: editors and batches of it never wait for the deletes. Both are one transaction, so
      -- nobody sees the one without the other; a row that is held in the end keeps its visits until the next call.
      loop
        delete from public.store_visits s
         where s.distribution_id = purge_old_visits.distribution_id
           and s.visit_number = any (array(select o.visit_number from public.store_visits o
                                            where o.distribution_id = purge_old_visits.distribution_id and o.visited_at < before
                                            order by o.visit_number limit chunk for update skip locked));
        get diagnostics deleted = row_count;
        purged := purged + deleted;
        chunks_done := chunks_done + 1;
        exit when deleted < chunk or chunks_done >= chunks;
      end loop;
      if purged > 0 then
        if not public.visit_pacer_hold(distribution_id) then
          raise lock_not_available;
        end if;
        update public.visit_distribution_progress p set purged = p.purged + purge_old_visits.purged
         where p.distribution_id = purge_old_visits.distribution_id;
        return next;
      end if;
    exception when lock_not_available then
      raise notice 'visit-pacer: distribution % is held by another transaction; its visits are purged by the next call', distribution_id;
    end;
  end loop;
end $$;
comment on function public.purge_old_visits is 'visit-pacer: removes generated visits older than this; they are never issued again';

select public.visit_pacer_make_room('function', 'adopt_existing_visits', 'partner uuid', 'TABLE(distribution_id uuid, adopted bigint, message text)');
create or replace function public.adopt_existing_visits(partner uuid)
returns table (distribution_id uuid, adopted bigint, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  windows uuid[];
  held uuid[];
  counted bigint;
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  select array_agg(v.id order by v.id) into windows from public.visit_distribution v where v.partner_id = partner;
  if windows is null then
    return query select null::uuid, 0::bigint, format('partner %s has no distribution', coalesce(partner::text, 'null'));
    return;
  end if;
  select array_agg(w.id) into held from unnest(windows) as w (id) where public.visit_pacer_hold(w.id);
  foreach distribution_id in array windows loop
    if distribution_id = any (held) is not true then
      return query select distribution_id, 0::bigint, 'held by another transaction; call again';
      continue;
    end if;
    with mine as (
      select s.id, row_number() over (order by s.visited_at, s.id) as nth
        from public.store_visits s join public.visit_distribution v on v.id = adopt_existing_visits.distribution_id
       where s.partner_id = partner and s.distribution_id is null
         and s.visited_at >= v.start_time and s.visited_at < coalesce(v.end_time, 'infinity')
         and not exists (select from public.visit_distribution o
                          where o.partner_id = partner and o.id <> v.id
                            and s.visited_at >= o.start_time and s.visited_at < coalesce(o.end_time, 'infinity')))
    update public.store_visits s set distribution_id = p.distribution_id, visit_number = p.last_number + mine.nth
      from mine, public.visit_distribution_progress p
     where s.id = mine.id and p.distribution_id = adopt_existing_visits.distribution_id;
    get diagnostics adopted = row_count;
    continue when adopted = 0;
    update public.visit_distribution_progress p
       set last_number = p.last_number + adopted, baseline = greatest(p.baseline - adopted, 0),
           distributed = p.distributed + greatest(adopted - p.baseline, 0)
     where p.distribution_id = adopt_existing_visits.distribution_id
    returning p.distributed into counted;
    message := format('%s visits belong to this distribution now; distributed: %s', adopted, counted);
    return next;
  end loop;
  perform public.visit_pacer_tell(held, false);
  return query
    select null::uuid, 0::bigint, format('%s visits lie in the windows of several distributions and stay as they are', count(*))
      from public.store_visits s
     where s.partner_id = partner and s.distribution_id is null
       and (select count(*) from public.visit_distribution v where v.partner_id = partner
               and s.visited_at >= v.start_time and s.visited_at < coalesce(v.end_time, 'infinity')) > 1
    having count(*) > 0;
end $$;
comment on function public.adopt_existing_visits is
  'visit-pacer: tags a partner''s untagged visits with the one distribution whose window holds them';

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000600') on conflict do nothing;
