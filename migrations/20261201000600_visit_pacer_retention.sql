-- visit-pacer 6 of 7: reconciling counts, purging and adopting visits.

-- Of these distributions, those whose progress and stored visits differ, or did when they were compared last. One read-only statement has
-- one snapshot, and a batch moves both together: so the difference holds, whatever is stored meanwhile, and no lock is kept while counting.
create or replace function public.visit_pacer_count_mismatches(distributions uuid[])
returns table (distribution_id uuid, difference bigint, highest bigint)
language sql stable set search_path = '' as $$
  select c.distribution_id, c.difference, c.highest from (
    select p.distribution_id, p.missing, p.last_number, s.stored + p.purged + p.baseline - p.distributed as difference, s.highest
      from public.visit_distribution_progress p
      cross join lateral (select count(*) as stored, coalesce(max(v.visit_number), 0) as highest
                            from public.store_visits v where v.distribution_id = p.distribution_id) s
     where p.distribution_id = any (distributions)) c
   where c.difference <> 0 or c.missing > 0 or c.last_number < c.highest
   order by c.distribution_id
$$;
comment on function public.visit_pacer_count_mismatches is 'visit-pacer: the distributions whose progress and stored visits differ, and by how much';

-- Makes the progress of one distribution agree with what is stored: `difference` is stored + purged + baseline - distributed, `highest` the
-- highest number stored, both as visit_pacer_count_mismatches() found them.
create or replace function public.visit_pacer_reconcile_row(distribution uuid, difference bigint, highest bigint, lower boolean)
returns table (partner_id public.partners.id%type, counted_before bigint, counted_now bigint, missing bigint, message text)
language plpgsql as $$
declare
  held record;
  p public.visit_distribution_progress;
begin
  select v.partner_id as partner, public.visit_pacer_utc(v.end_time) as end_time into held
    from public.visit_distribution v where v.id = distribution for no key update skip locked;
  if not found and exists (select from public.visit_distribution v where v.id = distribution) then
    select v.partner_id, q.distributed, q.distributed, q.missing, 'held by another transaction; the next call compares it again'
      into partner_id, counted_before, counted_now, missing, message
      from public.visit_distribution v join public.visit_distribution_progress q on q.distribution_id = v.id where v.id = distribution;
    return next;
    return;
  end if;
  select * into p from public.visit_distribution_progress where distribution_id = distribution for update skip locked;
  if not found then
    return;
  end if;
  partner_id := held.partner;
  counted_before := p.distributed;
  counted_now := p.distributed;
  missing := greatest(-difference, 0);
  if difference > 0 then
    counted_now := p.distributed + difference;
    message := format('%s visits were stored and not counted; they are counted now', difference);
  elsif missing > 0 and lower and held.partner is not null and (held.end_time is null or held.end_time > clock_timestamp()) then
    counted_now := p.distributed - missing;
    message := format('lowered: the %s missing visits are stored again at the rate of the distribution', missing);
    missing := 0;
  elsif missing > 0 then
    message := format('%s visits are missing from store_visits; select * from sync_distribution_counts(lower => true) has those of open windows stored again', missing);
  elsif p.last_number < highest then
    message := format('the next visit number continues after %s, the highest stored', highest);
  end if;
  update public.visit_distribution_progress q
     set distributed = counted_now, missing = visit_pacer_reconcile_row.missing, last_number = greatest(q.last_number, highest)
   where q.distribution_id = distribution
     and (q.distributed, q.missing, q.last_number)
         is distinct from (counted_now, visit_pacer_reconcile_row.missing, greatest(q.last_number, highest));
  if message is not null then
    return next;
  end if;
end $$;
comment on function public.visit_pacer_reconcile_row is 'visit-pacer: makes the progress of one distribution agree with what is stored';

select public.visit_pacer_replace_object('function', 'sync_distribution_counts', 'lower boolean',
  format('TABLE(distribution_id uuid, partner_id %s, counted_before bigint, counted_now bigint, missing bigint, message text)', public.visit_pacer_partner_type()));
create or replace function public.sync_distribution_counts(lower boolean default false)
returns table (distribution_id uuid, partner_id public.partners.id%type, counted_before bigint, counted_now bigint, missing bigint, message text)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  differing record;
  strangers uuid[];
begin
  perform public.visit_pacer_initialise();
  -- What takes longest comes first, as long as no row is locked.
  select array_agg(v.id order by v.id) into strangers from public.visit_distribution v
   where exists (select from public.store_visits s where s.partner_id = v.partner_id and s.distribution_id is null
                    and public.visit_pacer_utc(s.visited_at) >= public.visit_pacer_utc(v.start_time)
                    and public.visit_pacer_utc(s.visited_at) < coalesce(public.visit_pacer_utc(v.end_time), 'infinity'));
  for differing in
    select * from public.visit_pacer_count_mismatches((select array_agg(v.id) from public.visit_distribution v))
  loop
    return query select differing.distribution_id, r.*
      from public.visit_pacer_reconcile_row(differing.distribution_id, differing.difference, differing.highest, sync_distribution_counts.lower) r;
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
     where v.id = any (strangers)
     order by v.id;
end $$;
comment on function public.sync_distribution_counts is 'visit-pacer: makes the counters agree with the visits that are stored';

select public.visit_pacer_replace_object('function', 'purge_old_visits', 'keep interval',
  'TABLE(distribution_id uuid, purged bigint)');
-- The visits of all rows first, the rows last: an editor, or a batch, waits for no delete. All of it is one transaction, so nobody sees
-- the one without the other.
create or replace function public.purge_old_visits(keep interval)
returns table (distribution_id uuid, purged bigint)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  chunk constant integer := 10000;
  chunks constant integer := 100;       -- at most a million visits a call: one transaction
  work constant interval := '20 seconds';
  began constant timestamptz := clock_timestamp();
  before constant timestamptz := began - keep;
  chunks_done integer := 0;
  deleted bigint;
  rows_purged uuid[] := '{}';
  visits_purged bigint[] := '{}';
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
      loop
        delete from public.store_visits s
         where s.distribution_id = purge_old_visits.distribution_id
           and s.visit_number = any (array(select o.visit_number from public.store_visits o
                                            where o.distribution_id = purge_old_visits.distribution_id and public.visit_pacer_utc(o.visited_at) < before
                                            order by o.visit_number limit chunk for update skip locked));
        get diagnostics deleted = row_count;
        purged := purged + deleted;
        chunks_done := chunks_done + 1;
        exit when deleted < chunk or chunks_done >= chunks;
      end loop;
      if purged > 0 then
        -- Somebody who holds the row now may do so for long: its visits stay. Else it is let go again at once.
        begin
          if not public.visit_pacer_lock_row(distribution_id) then
            raise lock_not_available;
          end if;
          raise exception using errcode = 'VP001', message = 'nobody holds the row';
        exception when sqlstate 'VP001' then
          null;
        end;
        rows_purged := rows_purged || distribution_id;
        visits_purged := visits_purged || purged;
      end if;
    exception when lock_not_available then
      raise notice 'visit-pacer: distribution % is held by another transaction; its visits are purged by the next call', distribution_id;
    end;
  end loop;
  for distribution_id, purged in select t.id, t.visits from unnest(rows_purged, visits_purged) as t (id, visits) order by t.id loop
    if not public.visit_pacer_lock_row(distribution_id) then
      raise exception using errcode = 'lock_not_available',
        message = format('purge_old_visits: distribution %s is held by another transaction; nothing is purged', distribution_id),
        hint = 'call it again';
    end if;
    update public.visit_distribution_progress p set purged = p.purged + purge_old_visits.purged
     where p.distribution_id = purge_old_visits.distribution_id;
    return next;
  end loop;
end $$;
comment on function public.purge_old_visits is 'visit-pacer: removes generated visits older than this; they are never issued again';

-- Removes generated visits of one distribution, which may be gone, and counts them as purged: they never come again. At most
-- 5 s of work and 100,000 visits a call: call it until it says 0. As in purge_old_visits(), the visits first, the row last.
create or replace function public.visit_pacer_purge_distribution(distribution uuid)
returns table (purged bigint)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  chunk constant integer := 10000;
  chunks constant integer := 10;
  work constant interval := '5 seconds';
  began constant timestamptz := clock_timestamp();
  deleted bigint;
begin
  perform public.visit_pacer_require_read_committed();
  purged := 0;
  for turn in 1 .. chunks loop
    delete from public.store_visits s
     where s.distribution_id = distribution
       and s.visit_number = any (array(select o.visit_number from public.store_visits o where o.distribution_id = distribution
                                        order by o.visit_number limit chunk for update skip locked));
    get diagnostics deleted = row_count;
    purged := purged + deleted;
    exit when deleted < chunk or clock_timestamp() - began >= work;
  end loop;
  if purged > 0 then
    if not public.visit_pacer_lock_row(distribution) then
      raise exception using errcode = 'lock_not_available', message = 'visit-pacer: the distribution is held by another transaction',
        hint = 'nothing was removed; call again';
    end if;
    update public.visit_distribution_progress p set purged = p.purged + visit_pacer_purge_distribution.purged
     where p.distribution_id = distribution;
  end if;
  return next;
end $$;
comment on function public.visit_pacer_purge_distribution is
  'visit-pacer: removes generated visits of one distribution, which never come again; call it until it says 0';

select public.visit_pacer_replace_object('function', 'adopt_existing_visits', format('partner %s', public.visit_pacer_partner_type()),
  'TABLE(distribution_id uuid, adopted bigint, message text)');
create or replace function public.adopt_existing_visits(partner public.partners.id%type)
returns table (distribution_id uuid, adopted bigint, message text)
language plpgsql security definer as $$
#variable_conflict use_column
declare
  windows uuid[];
  held uuid[];
  counted bigint;
  highest bigint;
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  select array_agg(v.id order by v.id) into windows from public.visit_distribution v where v.partner_id = partner;
  if windows is null then
    return query select null::uuid, 0::bigint, format('partner %s has no distribution', coalesce(partner::text, 'null'));
    return;
  end if;
  select array_agg(w.id) into held from unnest(windows) as w (id) where public.visit_pacer_lock_row(w.id);
  foreach distribution_id in array windows loop
    if distribution_id = any (held) is not true then
      return query select distribution_id, 0::bigint, 'held by another transaction; call again';
      continue;
    end if;
    with mine as (
      select s.id, row_number() over (order by s.visited_at, s.id) as nth
        from public.store_visits s join public.visit_distribution v on v.id = adopt_existing_visits.distribution_id
       where s.partner_id = partner and s.distribution_id is null
         and public.visit_pacer_utc(s.visited_at) >= public.visit_pacer_utc(v.start_time)
                    and public.visit_pacer_utc(s.visited_at) < coalesce(public.visit_pacer_utc(v.end_time), 'infinity')
         and not exists (select from public.visit_distribution o
                          where o.partner_id = partner and o.id <> v.id
                            and public.visit_pacer_utc(s.visited_at) >= public.visit_pacer_utc(o.start_time)
                            and public.visit_pacer_utc(s.visited_at) < coalesce(public.visit_pacer_utc(o.end_time), 'infinity'))
    ), adopting as (
    update public.store_visits s set distribution_id = p.distribution_id, visit_number = p.last_number + mine.nth
      from mine, public.visit_distribution_progress p
     where s.id = mine.id and p.distribution_id = adopt_existing_visits.distribution_id
    returning s.visit_number)
    -- One that somebody deletes meanwhile leaves its number out, and no later visit may have it.
    select count(*), max(a.visit_number) into adopted, highest from adopting a;
    continue when adopted = 0;
    update public.visit_distribution_progress p
       set last_number = greatest(p.last_number, highest), baseline = greatest(p.baseline - adopted, 0),
           distributed = p.distributed + greatest(adopted - p.baseline, 0)
     where p.distribution_id = adopt_existing_visits.distribution_id
    returning p.distributed into counted;
    message := format('%s visits belong to this distribution now; distributed: %s', adopted, counted);
    return next;
  end loop;
  perform public.visit_pacer_write_back(held, false);
  return query
    select null::uuid, 0::bigint, format('%s visits lie in the windows of several distributions and stay as they are', count(*))
      from public.store_visits s
     where s.partner_id = partner and s.distribution_id is null
       and (select count(*) from public.visit_distribution v where v.partner_id = partner
               and public.visit_pacer_utc(s.visited_at) >= public.visit_pacer_utc(v.start_time)
                    and public.visit_pacer_utc(s.visited_at) < coalesce(public.visit_pacer_utc(v.end_time), 'infinity')) > 1
    having count(*) > 0;
end $$;
comment on function public.adopt_existing_visits is
  'visit-pacer: tags a partner''s untagged visits with the one distribution whose window holds them';

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000600') on conflict do nothing;
