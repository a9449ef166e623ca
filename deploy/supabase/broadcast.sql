-- Edits of visit_distribution as broadcasts from the database (Realtime's realtime.send): a second way for the agent to hear of
-- them, in milliseconds and with a replay, beside postgres_changes, which polls. `visit-pacer run --listen-by auto` takes both;
-- `--listen-by broadcast` needs no publication of visit_distribution at all. Run by the owner of the tables, in the SQL Editor or
-- with psql; any number of times, and again after role.sql. Agents notice within half a minute. broadcast_remove.sql takes it away.
--
-- A broadcast goes to the private topic visit_pacer and says which row has which config_version, nothing of the row itself. The
-- agent's own write-backs change no config_version, so they are not broadcast. A broadcast that fails never fails an edit.
begin;
set local lock_timeout = '3s';

do $$
begin
  if to_regclass('realtime.messages') is null or to_regprocedure('realtime.send(jsonb,text,text,boolean)') is null then
    raise exception using message = 'this project has no realtime.send(jsonb, text, text, boolean): it cannot broadcast from the database',
      hint = 'on Supabase: update the project; with your own Realtime: v2.34 or later. postgres_changes works without';
  end if;
  if to_regprocedure('public.visit_pacer_backfill(uuid)') is null then
    raise exception using message = 'the schema of visit-pacer is missing or old', hint = 'run visit-pacer migrate first';
  end if;
end $$;

-- As its owner: whoever may edit a row need have no right in the schema realtime.
create or replace function public.visit_pacer_broadcast_edit() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  edited constant public.visit_distribution := case tg_op when 'DELETE' then old else new end;
begin
  perform realtime.send(
    jsonb_build_object('distribution_id', edited.id, 'config_version', case when tg_op <> 'DELETE' then edited.config_version end),
    'row', 'visit_pacer', true);
  return null;
exception when others then
  raise log 'visit-pacer: an edit of % was not broadcast: %', edited.id, sqlerrm;
  return null;
end $$;
comment on function public.visit_pacer_broadcast_edit() is 'visit-pacer: tells listeners which row was edited';
revoke all on function public.visit_pacer_broadcast_edit() from public;

drop trigger if exists zzz_visit_pacer_broadcast_new on public.visit_distribution;
create trigger zzz_visit_pacer_broadcast_new after insert or delete on public.visit_distribution
  for each row execute function public.visit_pacer_broadcast_edit();
drop trigger if exists zzz_visit_pacer_broadcast_edited on public.visit_distribution;
create trigger zzz_visit_pacer_broadcast_edited after update on public.visit_distribution
  for each row when (old.config_version is distinct from new.config_version) execute function public.visit_pacer_broadcast_edit();

-- The agent's proof that broadcasts arrive: once a minute, if it listens.
create or replace function public.visit_pacer_broadcast_canary() returns void
language sql security definer set search_path = '' as $$
  select realtime.send(
    jsonb_build_object('sent_at', floor(extract(epoch from clock_timestamp()) * 1000)::bigint), 'canary', 'visit_pacer', true)
$$;
comment on function public.visit_pacer_broadcast_canary() is 'visit-pacer: proves that broadcasts arrive';
revoke all on function public.visit_pacer_broadcast_canary() from public;

do $$
declare
  r text;
begin
  foreach r in array array['anon', 'authenticated'] loop
    if exists (select from pg_roles where rolname = r) then  -- Supabase grants new functions to them
      execute format('revoke all on function public.visit_pacer_broadcast_edit(), public.visit_pacer_broadcast_canary() from %I', r);
    end if;
  end loop;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant execute on function public.visit_pacer_broadcast_canary() to service_role;
  end if;
  -- service_role may read every private topic. A token of the agent's own role needs a policy; it reads its topic and no other.
  if exists (select from pg_roles where rolname = 'visit_pacer') then
    grant execute on function public.visit_pacer_broadcast_canary() to visit_pacer;
    begin
      drop policy if exists visit_pacer_agent on realtime.messages;
      create policy visit_pacer_agent on realtime.messages for select to visit_pacer using (topic = 'visit_pacer');
      grant usage on schema realtime to visit_pacer;
      grant select on realtime.messages to visit_pacer;
      if not has_schema_privilege('visit_pacer', 'realtime', 'usage') then  -- a grant of what one may not pass on only warns
        raise insufficient_privilege using message = 'the schema realtime is another owner''s';
      end if;
    exception when insufficient_privilege or undefined_column then
      raise notice 'visit-pacer: the role visit_pacer may not read the topic (%); the secret key may', sqlerrm;
    end;
  end if;
end $$;

commit;
