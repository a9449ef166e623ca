-- visit-pacer 13: who takes care of the visits keeps nobody waiting. What takes long is done before a row is locked, a number is given
-- once also where visits are deleted during an adoption, and the control row is made again without an agent too. Nothing else
-- differs from files 3, 5 and 7.

create or replace function public.visit_pacer_initialise() returns bigint
language plpgsql set search_path = '' as $$
declare
  touched bigint;
begin
  -- As each beat of an agent does: without its row nothing may be stored, and nobody would know why.
  insert into public.visit_pacer_control (id)
    select true where not exists (select from public.visit_pacer_control) on conflict do nothing;
  with unseen as (
    select v.id from public.visit_distribution v where v.anchor_at is null order by v.id for no key update skip locked)
  update public.visit_distribution v set total_distributed = v.total_distributed from unseen where v.id = unseen.id;  -- the trigger does the rest
  get diagnostics touched = row_count;
  with unseen as (
    select v.id, v.total_distributed, v.total_visits from public.visit_distribution v
     where not exists (select from public.visit_distribution_progress p where p.distribution_id = v.id)
     order by v.id for no key update skip locked)
  select touched + count(public.visit_pacer_first_progress(u.id, u.total_distributed::numeric, u.total_visits::numeric))
    into touched from unseen u;
  return touched;
end $$;

-- The visits of all rows first, the rows last: an editor, or a batch, waits for no delete. All of it is one transaction, so nobody sees
-- the one without the other.
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
                                            where o.distribution_id = purge_old_visits.distribution_id and o.visited_at < before
                                            order by o.visit_number limit chunk for update skip locked));
        get diagnostics deleted = row_count;
        purged := purged + deleted;
        chunks_done := chunks_done + 1;
        exit when deleted < chunk or chunks_done >= chunks;
      end loop;
      if purged > 0 then
        -- Somebody who holds the row now may do so for long: its visits stay. Else it is let go again at once.
        begin
          if not public.visit_pacer_hold(distribution_id) then
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
    if not public.visit_pacer_hold(distribution_id) then
      raise exception using errcode = 'lock_not_available',
        message = format('purge_old_visits: distribution %s is held by another transaction; nothing is purged', distribution_id),
        hint = 'call it again';
    end if;
    update public.visit_distribution_progress p set purged = p.purged + purge_old_visits.purged
     where p.distribution_id = purge_old_visits.distribution_id;
    return next;
  end loop;
end $$;

create or replace function public.adopt_existing_visits(partner uuid)
returns table (distribution_id uuid, adopted bigint, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
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
                            and s.visited_at >= o.start_time and s.visited_at < coalesce(o.end_time, 'infinity'))
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
  perform public.visit_pacer_tell(held, false);
  return query
    select null::uuid, 0::bigint, format('%s visits lie in the windows of several distributions and stay as they are', count(*))
      from public.store_visits s
     where s.partner_id = partner and s.distribution_id is null
       and (select count(*) from public.visit_distribution v where v.partner_id = partner
               and s.visited_at >= v.start_time and s.visited_at < coalesce(v.end_time, 'infinity')) > 1
    having count(*) > 0;
end $$;

create or replace function public.sync_distribution_counts(lower boolean default false)
returns table (distribution_id uuid, partner_id uuid, counted_before bigint, counted_now bigint, missing bigint, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' set jit = off as $$
#variable_conflict use_column
declare
  differing uuid;
  strangers uuid[];
begin
  perform public.visit_pacer_initialise();
  -- What takes longest comes first, as long as no row is locked.
  select array_agg(v.id order by v.id) into strangers from public.visit_distribution v
   where exists (select from public.store_visits s where s.partner_id = v.partner_id and s.distribution_id is null
                    and s.visited_at >= v.start_time and s.visited_at < coalesce(v.end_time, 'infinity'));
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
     where v.id = any (strangers)
     order by v.id;
end $$;

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261123000100') on conflict do nothing;
