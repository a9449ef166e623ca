-- visit-pacer 4 of 9: the one write. The agent and the SQL functions store visits through it and through nothing else.

-- The partners that nobody holds exclusively, locked as the foreign key will lock them, so that the key's own check never
-- waits. SECURITY DEFINER: the lock needs UPDATE on some column, which a writer of visits should not have.
create or replace function public.visit_pacer_lock_partners(partners uuid[]) returns setof uuid
language sql security definer set search_path = '' as $$
  select p.id from public.partners p where p.id = any (partners) order by p.id for key share skip locked
$$;
comment on function public.visit_pacer_lock_partners is 'visit-pacer: locks partners FOR KEY SHARE, skipping those that are held';

-- Whether visits may be stored at all: the control row, locked, so that `paused` is a barrier. SECURITY DEFINER for the same reason.
create or replace function public.visit_pacer_may_store() returns boolean
language sql security definer set search_path = '' as $$
  select exists (select from (select from public.visit_pacer_control c where not c.paused for share skip locked) held)
$$;
comment on function public.visit_pacer_may_store is 'visit-pacer: locks the control row; false while everything is paused';

-- One batch, one statement: either a row's visits, its progress and its bucket move together, or nothing of it does.
-- A row is refused, and only that row, when somebody holds it or its partner, when it is not the version that the batch was
-- computed from, or when its progress has moved (compare-and-set). Returns the rows that were stored; a refused one is
-- read again in another statement, since this one has one snapshot.
--
-- Rows: parallel arrays, one element a row. Visits: parallel arrays, one element a visit.
create or replace function public.visit_pacer_store(
  row_ids uuid[], row_versions bigint[], row_last_numbers bigint[], row_distributed bigint[], row_bucket_at_before timestamptz[],
  row_counts integer[], row_cuts timestamptz[], row_last_visited_at timestamptz[], row_bucket_units numeric[], row_bucket_at timestamptz[],
  visit_rows uuid[], visit_partners uuid[], visit_numbers bigint[], visit_ids uuid[], visit_moments timestamptz[],
  visit_durations integer[], visit_paths text[], visit_agents text[], visit_referrers text[], visit_devices text[])
returns setof uuid
language sql set search_path = '' set timezone = 'UTC' as $$  -- for a visited_at without a zone
  with batch as (
    select * from unnest(row_ids, row_versions, row_last_numbers, row_distributed, row_bucket_at_before,
                         row_counts, row_cuts, row_last_visited_at, row_bucket_units, row_bucket_at)
      as r (id, version, last_number, distributed, bucket_at_before, visits, cut, last_visited_at, bucket_units, bucket_at)
  ), locked as materialized (
    -- The batch's columns are carried through, so that nothing below has to join unnest() again.
    select v.partner_id, v.total_visits, batch.*
      from batch join public.visit_distribution v on v.id = batch.id
     where v.is_active and v.config_version = batch.version and batch.cut <= clock_timestamp()
       and (select public.visit_pacer_may_store())
       for no key update of v skip locked
  ), partners as materialized (
    select p from public.visit_pacer_lock_partners((select array_agg(distinct locked.partner_id) from locked)) p
  ), advanced as (
    update public.visit_distribution_progress p
       set distributed = p.distributed + locked.visits, last_number = p.last_number + locked.visits,
           last_visited_at = locked.last_visited_at, bucket_units = locked.bucket_units, bucket_at = locked.bucket_at,
           invalid_reason = null, invalid_at = null
      from locked
     where p.distribution_id = locked.id
       and p.last_number = locked.last_number and p.distributed = locked.distributed
       and p.bucket_at is not distinct from locked.bucket_at_before
       and p.distributed + locked.visits <= locked.total_visits
       and (locked.partner_id in (select partners.p from partners)) is true
    returning p.distribution_id as id
  ), stored as (
    insert into public.store_visits (distribution_id, partner_id, visit_number, id, visited_at,
                                     session_duration, page_path, user_agent, referrer, device_type)
    select v.* from unnest(visit_rows, visit_partners, visit_numbers, visit_ids, visit_moments,
                           visit_durations, visit_paths, visit_agents, visit_referrers, visit_devices)
      as v (distribution_id, partner_id, visit_number, id, visited_at, session_duration, page_path, user_agent, referrer, device_type)
     where (v.distribution_id in (select advanced.id from advanced)) is true
  )
  select advanced.id from advanced
$$;
comment on function public.visit_pacer_store is 'visit-pacer: the one write';

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000400') on conflict do nothing;
