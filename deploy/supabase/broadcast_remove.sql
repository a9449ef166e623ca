-- Takes away what broadcast.sql made; run by the owner of the tables, any number of times. Agents that listen by `auto` go on with
-- postgres_changes; those that listen by broadcast alone see edits by their periodic sync from now on.
begin;
set local lock_timeout = '3s';
set local client_min_messages = warning;

drop trigger if exists zzz_visit_pacer_broadcast_new on public.visit_distribution;
drop trigger if exists zzz_visit_pacer_broadcast_edited on public.visit_distribution;
drop function if exists public.visit_pacer_broadcast_edit();
drop function if exists public.visit_pacer_broadcast_canary();
do $$
begin
  if to_regclass('realtime.messages') is not null then
    drop policy if exists visit_pacer_agent on realtime.messages;
    if exists (select from pg_roles where rolname = 'visit_pacer') then
      revoke all on realtime.messages from visit_pacer;
      revoke all on schema realtime from visit_pacer;
    end if;
  end if;
exception when insufficient_privilege then
  raise notice 'visit-pacer: %', sqlerrm;
end $$;
commit;
