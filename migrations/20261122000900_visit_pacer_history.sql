-- visit-pacer 10: what was asked for, and when: each edit of a row's pace, so that a report can draw the curve of the past and
-- say who changed it. Read by `visit-pacer report` and the dashboard; pacing never looks at it.

set local lock_timeout = '10s';

create table if not exists public.visit_pacer_edits (
  distribution_id uuid not null,
  config_version bigint not null,
  edited_at timestamptz not null,
  edited_by text,
  partner_id uuid,
  is_active boolean,
  total_visits numeric,
  visits_per_unit numeric,
  time_period text,
  start_time timestamptz,
  end_time timestamptz,
  anchor_units numeric,
  anchor_at timestamptz,
  primary key (distribution_id, config_version)
);
comment on table public.visit_pacer_edits is 'visit-pacer: the edits of each row''s pace, the last 200 or so; they go with the row';
alter table public.visit_pacer_edits enable row level security;
revoke all on table public.visit_pacer_edits from public;
do $$
declare
  r text;
begin
  for r in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
    execute format('revoke all on table public.visit_pacer_edits from %I', r);
  end loop;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant select on table public.visit_pacer_edits to service_role;
  end if;
end $$;

-- Of a statement, the rows whose version it moved. A write-back moves none.
create or replace function public.visit_pacer_after_edit() returns trigger
language plpgsql security definer set search_path = '' set timezone = 'UTC' as $$
declare
  kept constant integer := 200;
  editor constant text := session_user || coalesce(' (' || nullif(current_setting('application_name', true), '') || ')', '');
begin
  if tg_op = 'INSERT' then
    insert into public.visit_pacer_edits
    select n.id, n.config_version, clock_timestamp(), editor, n.partner_id, n.is_active, n.total_visits::numeric, n.visits_per_unit::numeric,
           n.time_period::text, public.visit_pacer_utc(n.start_time), public.visit_pacer_utc(n.end_time), n.anchor_units, n.anchor_at
      from new_rows n where n.config_version is not null
    on conflict do nothing;
    return null;
  end if;
  insert into public.visit_pacer_edits
  select n.id, n.config_version, case when n.anchor_at is distinct from o.anchor_at then n.anchor_at else clock_timestamp() end, editor,
         n.partner_id, n.is_active, n.total_visits::numeric, n.visits_per_unit::numeric, n.time_period::text,
         public.visit_pacer_utc(n.start_time), public.visit_pacer_utc(n.end_time), n.anchor_units, n.anchor_at
    from new_rows n join old_rows o on o.id = n.id
   where n.config_version is distinct from o.config_version and n.config_version is not null
  on conflict do nothing;
  -- One edit in ten looks for those that are too many.
  delete from public.visit_pacer_edits e
   using new_rows n join old_rows o on o.id = n.id
   where n.config_version is distinct from o.config_version and n.config_version % 10 = 0
     and e.distribution_id = n.id
     and e.config_version < (select l.config_version from public.visit_pacer_edits l where l.distribution_id = n.id
                              order by l.config_version desc offset kept limit 1);
  return null;
end $$;
comment on function public.visit_pacer_after_edit is 'visit-pacer: keeps what a row asked for before and after an edit of its pace';

create or replace trigger zzz_visit_pacer_after_edit_insert after insert on public.visit_distribution
  referencing new table as new_rows for each statement execute function public.visit_pacer_after_edit();
create or replace trigger zzz_visit_pacer_after_edit_update after update on public.visit_distribution
  referencing new table as new_rows old table as old_rows for each statement execute function public.visit_pacer_after_edit();
alter table public.visit_distribution
  enable always trigger zzz_visit_pacer_after_edit_insert,
  enable always trigger zzz_visit_pacer_after_edit_update;

-- Rows that are there: as they are now.
insert into public.visit_pacer_edits
select v.id, v.config_version, clock_timestamp(), null, v.partner_id, v.is_active, v.total_visits::numeric, v.visits_per_unit::numeric,
       v.time_period::text, public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), v.anchor_units, v.anchor_at
  from public.visit_distribution v where v.config_version is not null
on conflict do nothing;

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000900') on conflict do nothing;
