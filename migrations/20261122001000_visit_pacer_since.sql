-- visit-pacer 11: what changed since a moment, without reading every row. `changed_xid` is the transaction that last edited a
-- row's pace, and `lowered_xid` the one that last lowered its counter: a reader that asks for all that is not below the oldest
-- transaction in progress at its last look misses none, however late each commits.

set local lock_timeout = '10s';

create index if not exists visit_distribution_changed on public.visit_distribution (changed_xid);

alter table public.visit_distribution_progress add column if not exists lowered_xid xid8;
comment on column public.visit_distribution_progress.lowered_xid is 'visit-pacer: the transaction that last lowered distributed';
create index if not exists visit_distribution_progress_lowered on public.visit_distribution_progress (lowered_xid)
  where lowered_xid is not null;

create or replace function public.visit_pacer_lowered() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.lowered_xid := pg_current_xact_id();
  return new;
end $$;
comment on function public.visit_pacer_lowered is 'visit-pacer: marks a counter that was lowered, for agents that have the higher one';

create or replace trigger zzz_visit_pacer_lowered before update of distributed on public.visit_distribution_progress
  for each row when (new.distributed < old.distributed) execute function public.visit_pacer_lowered();

-- Rows that are gone, for an hour: agents that have not looked for so long read every row. A null id: the table was truncated.
create table if not exists public.visit_pacer_gone (
  distribution_id uuid,
  xid xid8 not null default pg_current_xact_id(),
  gone_at timestamptz not null default clock_timestamp()
);
comment on table public.visit_pacer_gone is 'visit-pacer: rows of visit_distribution that were deleted within the last hour';
create index if not exists visit_pacer_gone_xid on public.visit_pacer_gone (xid);
alter table public.visit_pacer_gone enable row level security;
revoke all on table public.visit_pacer_gone from public;
do $$
declare
  r text;
begin
  for r in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
    execute format('revoke all on table public.visit_pacer_gone from %I', r);
  end loop;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant select on table public.visit_pacer_gone to service_role;
  end if;
end $$;

create or replace function public.visit_pacer_after_delete() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if tg_op = 'TRUNCATE' then
    insert into public.visit_pacer_gone (distribution_id) values (null);
    delete from public.visit_pacer_edits;
  else
    insert into public.visit_pacer_gone (distribution_id) select d.id from deleted d;
    delete from public.visit_pacer_edits e using deleted d where e.distribution_id = d.id;
  end if;
  -- Those that another transaction removes as well are left to it: nobody waits here.
  delete from public.visit_pacer_gone g
   where g.ctid = any (array(select o.ctid from public.visit_pacer_gone o where o.gone_at < clock_timestamp() - interval '1 hour'
                              for update skip locked));
  return null;
end $$;
comment on function public.visit_pacer_after_delete is 'visit-pacer: notes which rows are gone, for agents that were not told; their edits go with them';

create or replace trigger zzz_visit_pacer_after_delete after delete on public.visit_distribution
  referencing old table as deleted for each statement execute function public.visit_pacer_after_delete();
create or replace trigger zzz_visit_pacer_after_truncate after truncate on public.visit_distribution
  for each statement execute function public.visit_pacer_after_delete();
alter table public.visit_distribution
  enable always trigger zzz_visit_pacer_after_delete,
  enable always trigger zzz_visit_pacer_after_truncate;

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122001000') on conflict do nothing;
