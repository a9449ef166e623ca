-- visit-pacer 5 of 7: the functions of the guide that store visits, and backfill.

-- Realistic visits for the SQL functions, with the shapes and the id layout of the agent's generator (src/domain/visit.rs) but
-- not its values. A visit is a pure function of (distribution, number, catalogue). A partner's own page paths replace the general
-- ones; if there are none at all, every path is '/'. Empty tables of user agents and referrers leave nulls.
--
-- Parallel arrays, one element per visit, of any number of distributions. Reads the catalogue with the rights of the caller: what
-- row level security hides is missing.
create or replace function public.visit_pacer_generate(
  distributions uuid[], partners text[], numbers bigint[], moments timestamptz[])
returns setof public.visit_pacer_batch_visit
language sql stable set search_path = '' as $$
  -- Items, and where each begins as a fraction of one: width_bucket() finds the item of a draw by bisection.
  with agent_choice as materialized (
    select array_agg(c.user_agent order by c.at) as items, array_agg(c.device_type order by c.at) as devices,
           array_agg(c.start order by c.at) as starts
      from (select a.user_agent, a.device_type, row_number() over sorted as at,
                   ((sum(a.weight) over sorted - a.weight) / sum(a.weight) over ())::float8 as start
              from public.visit_user_agents a window sorted as (order by a.user_agent, a.device_type)) c
  ), referrer_choice as materialized (
    select array_agg(c.referrer order by c.at) as items,
           array_agg(c.desktop_start order by c.at) filter (where c.desktop_start is not null) as desktop_starts,
           array_agg(c.handheld_start order by c.at) filter (where c.handheld_start is not null) as handheld_starts
      from (select r.referrer, row_number() over sorted as at,
                   ((sum(r.desktop_weight) over sorted - r.desktop_weight)
                      / nullif(sum(r.desktop_weight) over (), 0))::float8 as desktop_start,
                   ((sum(r.handheld_weight) over sorted - r.handheld_weight)
                      / nullif(sum(r.handheld_weight) over (), 0))::float8 as handheld_start
              from public.visit_referrers r window sorted as (order by r.referrer)) c
  ), catalogues as (   -- by whose they are: a partner's, or everybody's (null)
    select c.partner_id::text as partner_id, array_agg(c.path order by c.at) as items, array_agg(c.start order by c.at) as starts
      from (select p.partner_id, p.path, row_number() over sorted as at,
                   ((sum(p.weight) over sorted - p.weight) / sum(p.weight) over (partition by p.partner_id))::float8 as start
              from public.visit_page_paths p
             where p.partner_id is null or p.partner_id::text = any (visit_pacer_generate.partners)
            window sorted as (partition by p.partner_id order by p.path)) c
     group by c.partner_id
  ), path_choice as materialized (
    select asked.partner, coalesce(own.items, everybodys.items) as items, coalesce(own.starts, everybodys.starts) as starts
      from (select distinct unnest(visit_pacer_generate.partners) as partner) asked
      left join catalogues own on own.partner_id = asked.partner
      left join catalogues everybodys on everybodys.partner_id is null
  ),

  -- 64 hexadecimal digits a visit: the first 19 are the tail of its id, the last 40 five draws, uniform over [0, 1).
  hashed as (
    select v.distribution, v.partner, v.number, v.moment,
           encode(sha256(uuid_send(v.distribution) || int8send(v.number)), 'hex') as hash
      from unnest(distributions, partners, numbers, moments) as v (distribution, partner, number, moment)
  ), drawn as (
    select h.distribution, h.partner, h.number, h.moment, h.hash,
           ('x' || substr(h.hash, 25, 8))::bit(32)::bigint / 4294967296::float8 as agent_draw,
           ('x' || substr(h.hash, 33, 8))::bit(32)::bigint / 4294967296::float8 as referrer_draw,
           ('x' || substr(h.hash, 41, 8))::bit(32)::bigint / 4294967296::float8 as path_draw,
           sqrt(-2 * ln(1 - ('x' || substr(h.hash, 49, 8))::bit(32)::bigint / 4294967296::float8)) as radius,
           2 * pi() * ('x' || substr(h.hash, 57, 8))::bit(32)::bigint / 4294967296::float8 as angle
      from hashed h
  ), chosen as (
    -- Box and Muller: two normal numbers of one draw. The second is used where the first session is out of bounds.
    select d.distribution, d.partner, d.number, d.moment, d.hash, d.referrer_draw, d.path_draw,
           width_bucket(d.agent_draw, a.starts) as agent_at, a.items, a.devices,
           floor(90 * exp(1.05 * d.radius * cos(d.angle))) as session,
           floor(90 * exp(1.05 * d.radius * sin(d.angle))) as other_session
      from drawn d cross join agent_choice a
  )
  select c.distribution, c.partner, c.number,
         (lpad(to_hex(floor(extract(epoch from c.moment) * 1000)::bigint), 12, '0')    -- a version 7 UUID (RFC 9562)
            || '7' || substr(c.hash, 1, 3)
            || translate(substr(c.hash, 4, 1), '0123456789abcdef', '89ab89ab89ab89ab') || substr(c.hash, 5, 15))::uuid,
         c.moment,
         case when c.session between 5 and 3600 then c.session
              when c.other_session between 5 and 3600 then c.other_session
              else 90 end::integer,
         coalesce(p.items[width_bucket(c.path_draw, p.starts)], '/'),
         c.items[c.agent_at],
         r.items[width_bucket(c.referrer_draw,
           case when c.devices[c.agent_at] = 'desktop' then r.desktop_starts else r.handheld_starts end)],
         c.devices[c.agent_at]
    from chosen c cross join referrer_choice r join path_choice p on p.partner = c.partner
$$;
comment on function public.visit_pacer_generate is 'visit-pacer: believable visits, drawn from (distribution, number)';

-- Curve units per microsecond. A visit is 86,400,000,000 units, whatever the time_period: finite decimals.
create or replace function public.visit_pacer_slope(visits_per_unit numeric, time_period text) returns numeric
language sql stable parallel safe as $$
  select visits_per_unit * trunc(86400 / public.visit_pacer_unit_seconds(time_period))
$$;
comment on function public.visit_pacer_slope is 'visit-pacer: curve units per microsecond';

-- Quotient of two numbers that are not negative, rounded up. Exact: div() and mod() are.
create or replace function public.visit_pacer_ceil_div(dividend numeric, divisor numeric) returns numeric
language sql stable parallel safe as $$ select div(dividend, divisor) + sign(mod(dividend, divisor)) $$;
comment on function public.visit_pacer_ceil_div is 'visit-pacer: an exact quotient, rounded up';

-- Level of a row's bucket at a moment, in curve units: it fills at catch_up * rate, and holds one second of that (rounded up
-- to whole visits) and one visit. Never filled yet: full. A moment before the last one fills nothing.
create or replace function public.visit_pacer_bucket_level(bucket_units numeric, bucket_at timestamptz, slope numeric, catch_up numeric,
  at timestamptz) returns numeric
language sql stable parallel safe as $$
  select least((public.visit_pacer_ceil_div(catch_up * slope * 1000000, 86400000000) + 1) * 86400000000,
    case when bucket_at is not null   -- least() passes over a null
      then bucket_units + catch_up * slope * greatest(0, public.visit_pacer_micros(at) - public.visit_pacer_micros(bucket_at)) end)
$$;
comment on function public.visit_pacer_bucket_level is 'visit-pacer: level of a row''s token bucket at a moment, in curve units';

-- visited_at of the first `taken` of `visits` visits, of which `first` is the first in the order of distribution. With
-- m(k) the moment when the curve reaches k - 1/2: a visit whose m(k) lies in [floor, cut] gets it; each run of visits without
-- one is spread evenly between its neighbours' moments; all get the floor where that is after the cut. A curve that begins
-- after the cut (the end was moved before it) has no moments of its own. Exact: div() only.
create or replace function public.visit_pacer_visit_times(slope numeric, anchor_units numeric, from_at timestamptz,
  last_visited_at timestamptz, cut timestamptz, first bigint, visits bigint, taken bigint)
returns table (nth bigint, moment timestamptz)
language sql stable parallel safe as $$
  with span as (
    select f.floor_at, public.visit_pacer_micros(f.floor_at) - public.visit_pacer_micros(from_at) as floor_micros,
           greatest(0, public.visit_pacer_micros(cut) - public.visit_pacer_micros(f.floor_at)) as width
      from (select greatest(last_visited_at, case when from_at <= cut then from_at end, cut - interval '120 seconds') as floor_at) f
  ), own as (   -- the visits from `low` to `high` have a moment of their own
    select s.*,
           greatest(first, public.visit_pacer_ceil_div(2 * (anchor_units + slope * s.floor_micros) + 86400000000, 172800000000)) as low,
           least(first + visits, public.visit_pacer_ceil_div(2 * (anchor_units + slope * (s.floor_micros + s.width + 1)) + 86400000000,
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
comment on function public.visit_pacer_visit_times is 'visit-pacer: visited_at of the visits of a batch';

-- Every active row as it stands at a moment. `closed` says why nothing may be stored for it; `failed`, that its last insert
-- failed less than a minute ago and it has not been edited since.
create or replace function public.visit_pacer_active_distributions(at timestamptz)
returns table (id uuid, partner_id public.partners.id%type, config_version bigint, distributed bigint, last_number bigint, remaining bigint, backlog bigint,
               slope numeric, catch_up numeric, anchor_units numeric, from_at timestamptz, end_time timestamptz, last_visited_at timestamptz,
               bucket_units numeric, bucket_at timestamptz, invalid text, failed text, closed text)
language sql stable as $$
  select v.id, v.partner_id, v.config_version, p.distributed, p.last_number, r.remaining, r.backlog,
         r.slope, coalesce(v.catch_up, c.catch_up), v.anchor_units, greatest(v.anchor_at, public.visit_pacer_utc(v.start_time)),
         public.visit_pacer_utc(v.end_time), p.last_visited_at, p.bucket_units, p.bucket_at, public.visit_pacer_reason_text(i.invalid),
         case when p.reason_code = 'insert_failed' and p.reason_at > at - interval '60 seconds'
                   and public.visit_pacer_micros(p.reason_at) > v.config_version
              then p.reason_detail ->> 'message' end,
         case
           when (i.invalid).code is not null then public.visit_pacer_reason_text(i.invalid)
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
               public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), v.catch_up) as invalid) i
    left join lateral (
      select v.total_visits::bigint - p.distributed as remaining,
             greatest(0, public.visit_pacer_due(public.visit_pacer_curve(v.anchor_units, v.anchor_at, v.is_active, v.total_visits::numeric,
               v.visits_per_unit::numeric, v.time_period::text, public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), at),
               v.total_visits::numeric) - p.distributed) as backlog,
             public.visit_pacer_slope(v.visits_per_unit::numeric, v.time_period::text) as slope) r on (i.invalid).code is null
   where v.is_active
$$;
comment on function public.visit_pacer_active_distributions is 'visit-pacer: the active rows as they stand at a moment';

-- One statement's worth: stores up to its share of each of these rows, and says how many were stored of how many.
-- Never more than is due, nor, beside a live agent, than the row's bucket holds; by hand, up to the total while the window is
-- open, and the bucket stays as it is.
create or replace function public.visit_pacer_store_batch(ids uuid[], shares bigint[], by_hand boolean)
returns table (id uuid, asked bigint, stored bigint)
language plpgsql as $$
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
      join public.visit_pacer_active_distributions(cut_at) r on r.id = s.id
      cross join lateral (select public.visit_pacer_bucket_level(r.bucket_units, r.bucket_at, r.slope, r.catch_up, cut_at) as level) f
      cross join lateral (
        select least(s.share, case when by_hand then r.remaining when bucket_binds then least(r.backlog, div(f.level, 86400000000))
                                   else r.backlog end)::bigint as visits) n
     where r.closed is null and n.visits > 0 and not (by_hand and coalesce(r.end_time <= cut_at, false))
  ), dated as materialized (
    select b.id, b.partner_id, b.last_number + m.nth as number, m.moment
      from batch b cross join lateral public.visit_pacer_visit_times(b.slope, b.anchor_units, b.from_at, b.last_visited_at, b.cut,
                                                                 b.distributed + 1, b.visits, b.taken) m
  ), visits as (
    select array_agg(g order by g.partner_id, g.visited_at, g.visit_number) as records
      from (select array_agg(d.id) as ids, array_agg(d.partner_id::text) as partners, array_agg(d.number) as numbers,
                   array_agg(d.moment) as moments from dated d) a
      cross join lateral public.visit_pacer_generate(a.ids, a.partners, a.numbers, a.moments) g
  ), advances as (
    select array_agg(row(b.id, b.config_version, b.last_number, b.distributed, b.bucket_at, b.taken, b.cut, l.last_visited_at,
                         case when by_hand then b.bucket_units else greatest(0, b.level - b.taken * 86400000000) end,
                         case when by_hand then b.bucket_at else greatest(b.bucket_at, cut_at) end)::public.visit_pacer_batch_row) as records
      from batch b join (select d.id, max(d.moment) as last_visited_at from dated d group by d.id) l on l.id = b.id
  ), stored as materialized (
    select s.id from advances a cross join visits v cross join lateral public.visit_pacer_store(a.records, v.records) as s (id)
  )
  select b.id, b.taken, case when b.id in (select stored.id from stored) then b.taken else 0 end from batch b;
end $$;
comment on function public.visit_pacer_store_batch is 'visit-pacer: one statement''s worth of visits';

-- A batch that lets no row's failing insert stop the others: where it fails it is halved, until one row is left, which is then
-- set aside with the database's message. What is nobody's fault (a deadlock, a full disk, a lock_timeout) sets no row aside.
create or replace function public.visit_pacer_bisect_batch(ids uuid[], shares bigint[], by_hand boolean)
returns table (id uuid, stored bigint, problem text)
language plpgsql as $$
#variable_conflict use_column
declare
  half constant integer := cardinality(ids) / 2;
  failure jsonb;
  error_detail text;
  error_constraint text;
  error_context text;
  passing boolean;
begin
  begin
    return query
      select b.id, b.stored, case when b.stored < b.asked then 'held by another transaction; tried again at the next call' end
        from public.visit_pacer_store_batch(ids, shares, by_hand) b;
    return;
  exception when others then
    get stacked diagnostics error_detail = pg_exception_detail, error_constraint = constraint_name, error_context = pg_exception_context;
    failure := jsonb_strip_nulls(jsonb_build_object('message', sqlerrm, 'sqlstate', sqlstate, 'detail', nullif(error_detail, ''),
      'constraint', nullif(error_constraint, ''), 'context', nullif(error_context, '')));
    passing := left(sqlstate, 2) in ('08', '40', '53', '55', '57', '58', 'XX');
  end;
  if half > 0 then
    return query select a.* from public.visit_pacer_bisect_batch(ids[:half], shares[:half], by_hand) a;
    return query select a.* from public.visit_pacer_bisect_batch(ids[half + 1:], shares[half + 1:], by_hand) a;
    return;
  end if;
  perform from public.visit_distribution v where v.id = ids[1] for no key update skip locked;
  if found and not passing then
    update public.visit_distribution_progress p set reason_code = 'insert_failed', reason_detail = failure, reason_at = clock_timestamp()
     where p.distribution_id = ids[1];
  end if;
  return query select ids[1], 0::bigint, failure ->> 'message';
end $$;
comment on function public.visit_pacer_bisect_batch is 'visit-pacer: a batch in which a failing row does not stop the others';

-- Stores each row's share, in statements of bounded size: the rows take turns, in the order given, so that one with much to
-- catch up never keeps the others waiting. No statement but the first begins after `until`. Returns every row of `ids`.
create or replace function public.visit_pacer_store_in_batches(ids uuid[], shares bigint[], by_hand boolean, until timestamptz)
returns table (id uuid, added bigint, problem text)
language plpgsql as $$
#variable_conflict use_column
declare
  row_visits constant bigint := 1000;
  statement_visits constant bigint := 2000;
  rows constant integer := coalesce(cardinality(ids), 0);
  wanting bigint[] := shares;
  sums bigint[] := array_fill(0::bigint, array[rows]);
  problems text[] := array_fill(null::text, array[rows]);
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
      select w.place, coalesce(a.stored, 0) as stored, a.problem
        from unnest(wave) as w (place)
        left join public.visit_pacer_bisect_batch((select array_agg(ids[p]) from unnest(wave) p),
                                             (select array_agg(wanting[p]) from unnest(wave) p), by_hand) a on a.id = ids[w.place]
    loop
      wanting[got.place] := case when got.stored > 0 then wanting[got.place] - got.stored else 0 end;
      sums[got.place] := sums[got.place] + got.stored;
      problems[got.place] := got.problem;
      turns[got.place] := turns[got.place] + 1;
    end loop;
    exit when clock_timestamp() >= until;
  end loop;
  return query select r.* from unnest(ids, sums, problems) as r (id, added, problem);
end $$;
comment on function public.visit_pacer_store_in_batches is 'visit-pacer: stores each row''s share';

-- Tells the user's own columns what was stored: completions, and the rows that were told longest ago, as many as the burst of
-- the echo budget. Beside a live agent, which has the budget in hand, completions only.
create or replace function public.visit_pacer_write_back(ids uuid[], completions_only boolean) returns void
language plpgsql as $$
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
comment on function public.visit_pacer_write_back is 'visit-pacer: writes total_distributed back';

-- How many visits of each row a call may store: what is due, within its bucket beside a live agent, else within 15 minutes' worth;
-- shared max-min fairly where max_visits binds. The rows that were served longest ago come first, and get what does not divide.
create or replace function public.visit_pacer_allocations(at timestamptz, max_visits bigint)
returns table (id uuid, share bigint)
language sql stable set search_path = '' as $$
  with wants as (
    select r.id, r.last_visited_at,
           least(r.backlog, case when agent.alive
             then div(public.visit_pacer_bucket_level(r.bucket_units, r.bucket_at, r.slope, r.catch_up, at), 86400000000)
             else public.visit_pacer_ceil_div(r.slope * 900000000, 86400000000) end) as want
      from public.visit_pacer_active_distributions(at) r cross join (select public.visit_pacer_agent_alive() as alive) agent
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
comment on function public.visit_pacer_allocations is 'visit-pacer: how many visits of each row a call may store';

select public.visit_pacer_replace_object('function', 'distribute_visits', 'max_visits integer',
  format('TABLE(partner_id %s, visits_added bigint, total_distributed_now numeric, message text)', public.visit_pacer_partner_type()));
create or replace function public.distribute_visits(max_visits integer default 10000)
returns table (partner_id public.partners.id%type, visits_added bigint, total_distributed_now numeric, message text)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  work constant interval := '500 milliseconds';
  began constant timestamptz := clock_timestamp();
  beside_agent constant boolean := public.visit_pacer_agent_alive();
  stopped boolean;
  ids uuid[];
  shares bigint[];
  sums bigint[];
  problems text[];
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  stopped := not public.visit_pacer_may_store();
  if not stopped then
    select array_agg(s.id), array_agg(s.share) into ids, shares
      from public.visit_pacer_allocations(began, greatest(0, coalesce(max_visits, 10000))) s;
    select array_agg(d.id), array_agg(d.added), array_agg(d.problem) into ids, sums, problems
      from public.visit_pacer_store_in_batches(ids, shares, false, began + work) d;
    perform public.visit_pacer_write_back(array(select t.id from unnest(ids, sums) as t (id, added) where t.added > 0), beside_agent);
  end if;
  return query
    select r.partner_id, coalesce(t.added, 0), coalesce(r.distributed, 0)::numeric,
           case
             when r.invalid is not null then r.invalid
             when r.closed is not null then r.closed || '; owed: 0'
             when r.backlog = 0 then 'owed: 0'
             else coalesce(case when stopped then 'stopped: visit_pacer_control.paused is set' end, t.problem, r.failed || '; tried again every 60 s',
                           case when beside_agent then 'the rest comes at the pace of the row''s bucket' else 'the rest comes with the next calls' end)
                  || format('; owed: %s', r.backlog)
           end
      from public.visit_pacer_active_distributions(began) r
      left join unnest(ids, sums, problems) as t (id, added, problem) on t.id = r.id
     order by r.partner_id, r.id;
end $$;
comment on function public.distribute_visits is
  'visit-pacer: stores what is due now, at most so many visits and 500 ms of work; the message says what is still owed';

select public.visit_pacer_replace_object('function', 'distribute_visits_for_partner', format('partner %s, visits integer', public.visit_pacer_partner_type()),
  format('TABLE(partner_id %s, visits_added bigint, total_distributed_now numeric, message text)', public.visit_pacer_partner_type()));
create or replace function public.distribute_visits_for_partner(partner public.partners.id%type, visits integer)
returns table (partner_id public.partners.id%type, visits_added bigint, total_distributed_now numeric, message text)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  at_once constant integer := 10000;
  began constant timestamptz := clock_timestamp();
  asked constant bigint := least(visits, at_once);
  refusal text;
  ids uuid[];
  shares bigint[];
  sums bigint[];
  problems text[];
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
      from public.visit_pacer_active_distributions(began) r
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
  select array_agg(d.id), array_agg(d.added), array_agg(d.problem) into ids, sums, problems
    from public.visit_pacer_store_in_batches(ids, shares, true, 'infinity') d;
  perform public.visit_pacer_write_back(array(select t.id from unnest(ids, sums) as t (id, added) where t.added > 0), false);
  return query
    select r.partner_id, coalesce(t.added, 0), coalesce(r.distributed, 0)::numeric,
           coalesce(t.problem, case when t.added > 0 then format('added by hand; %s left of its total', r.remaining) end, r.closed,
                    case when r.end_time <= began then 'its window is over' else 'nothing fell to it' end)
           || case when visits > at_once then format('; at most %s at once', at_once) else '' end
      from public.visit_pacer_active_distributions(began) r
      left join unnest(ids, sums, problems) as t (id, added, problem) on t.id = r.id
     where r.partner_id = partner
     order by r.id;
end $$;
comment on function public.distribute_visits_for_partner is
  'visit-pacer: adds so many visits at once, over the partner''s active distributions in proportion to what each has left';

-- Has a row owe what its present pace gives since start_time: it is issued at the pace of the row's bucket, and nothing that was
-- distributed or is counted as such (the baseline) comes again. The trigger anchors the curve anew; this only asks it to.
create or replace function public.visit_pacer_backfill(distribution uuid)
returns table (distribution_id uuid, owed bigint, message text)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  r record;
  refusal text;
  moment timestamptz;
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  if not public.visit_pacer_lock_row(distribution) then
    return query select distribution, 0::bigint, 'held by another transaction; call again';
    return;
  end if;
  moment := clock_timestamp();  -- one for both curves, or a visit that falls due between them would seem to be owed
  select a.*, c.give_up_after,
         public.visit_pacer_due(public.visit_pacer_curve(0, public.visit_pacer_utc(v.start_time), v.is_active, v.total_visits::numeric, v.visits_per_unit::numeric,
           v.time_period::text, public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), moment), v.total_visits::numeric)
           - a.distributed - a.backlog as past   -- compared with what is due by the curve as it is
    into r
    from public.visit_pacer_active_distributions(moment) a
    join public.visit_distribution v on v.id = a.id
    cross join public.visit_pacer_control c
   where a.id = distribution;
  refusal := case
    when not found and not exists (select from public.visit_distribution v where v.id = distribution)
      then format('there is no distribution %s; see: select id from visit_distribution', coalesce(distribution::text, 'null'))
    when r.id is null then 'the row is paused; set is_active first'
    when r.closed is not null then r.closed
    when r.past <= 0 then format('nothing is owed for the past: %s are counted, %s of them from before', r.distributed,
      (select p.baseline from public.visit_distribution_progress p where p.distribution_id = distribution))
  end;
  if refusal is not null then
    return query select distribution, coalesce(r.backlog, 0), refusal;
    return;
  end if;
  update public.visit_distribution_progress p set backfill = true where p.distribution_id = distribution;
  update public.visit_distribution v set total_distributed = v.total_distributed where v.id = distribution;
  return query select distribution, r.backlog + r.past, format('%s visits of the past are owed now; they come at the pace of the row''s bucket', r.past);
end $$;
comment on function public.visit_pacer_backfill is 'visit-pacer: has a row owe what its pace gives since start_time';

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000500') on conflict do nothing;
