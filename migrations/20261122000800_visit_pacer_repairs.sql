-- visit-pacer 9 of 9: what a person asks for: the past of a row that was there before, and the removal of what was generated.

-- Has a row owe what its present pace gives since start_time: it is issued at the pace of the row's bucket, and nothing that was
-- distributed or is counted as such (the baseline) comes again. The trigger anchors the curve anew; this only asks it to.
create or replace function public.visit_pacer_backfill(distribution uuid)
returns table (distribution_id uuid, owed bigint, message text)
language plpgsql security definer set search_path = '' set timezone = 'UTC' as $$
#variable_conflict use_column
declare
  r record;
  refusal text;
  moment timestamptz;
begin
  perform public.visit_pacer_require_read_committed();
  perform public.visit_pacer_initialise();
  if not public.visit_pacer_hold(distribution) then
    return query select distribution, 0::bigint, 'held by another transaction; call again';
    return;
  end if;
  moment := clock_timestamp();  -- one for both curves, or a visit that falls due between them would seem to be owed
  select a.*, c.give_up_after,
         public.visit_pacer_due(public.visit_pacer_curve(0, v.start_time::timestamptz, v.is_active, v.total_visits::numeric, v.visits_per_unit::numeric,
           v.time_period::text, v.start_time::timestamptz, v.end_time::timestamptz, moment), v.total_visits::numeric)
           - a.distributed - a.backlog as past   -- compared with what is due by the curve as it is
    into r
    from public.visit_pacer_active(moment) a
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

-- Removes generated visits of one distribution, which may be gone, and counts them as purged: they never come again. At most
-- 5 s of work and 100,000 visits a call: call it until it says 0. As in purge_old_visits(), the visits first, the row last.
create or replace function public.visit_pacer_purge_distribution(distribution uuid)
returns table (purged bigint)
language plpgsql security definer set search_path = '' set jit = off as $$
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
    if not public.visit_pacer_hold(distribution) then
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

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000800') on conflict do nothing;
