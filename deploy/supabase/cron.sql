-- visit-pacer without an agent, or in reserve behind one: the jobs of the guide, for pg_cron. Run by the owner of the tables, in the
-- SQL Editor or with psql; any number of times. cron_remove.sql takes them down. A look: select jobname, schedule, active from cron.job;

do $$
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    create extension pg_cron;
  end if;
exception when insufficient_privilege or undefined_file or object_not_in_prerequisite_state or feature_not_supported or undefined_object or raise_exception then
  raise exception using message = 'pg_cron is not there: ' || sqlerrm,
    hint = 'on Supabase: Integrations, Cron, Enable; then run this again';
end $$;

-- Each minute: what came due. It stands back while an agent is alive, and takes over 20 seconds after the last one was seen.
select cron.schedule('visit-pacer: distribute', '* * * * *',
  'select * from public.distribute_visits() where not public.visit_pacer_agent_alive()');

-- Every 5 minutes: counters that agree with what is stored.
select cron.schedule('visit-pacer: sync', '*/5 * * * *',
  'select * from public.sync_distribution_counts()');

-- Daily at 2:00 (UTC), optional: generated visits older than this are removed, and never come again. Take the two dashes away.
-- select cron.schedule('visit-pacer: purge', '0 2 * * *', 'select * from public.purge_old_visits(interval ''90 days'')');

-- pg_cron keeps a line for every run, some 50 MB a year. Daily at 2:30, optional: those of a week are enough.
-- select cron.schedule('visit-pacer: forget runs', '30 2 * * *', 'delete from cron.job_run_details where end_time < now() - interval ''7 days''');

-- Jobs of yours that do the same: they may go on, all of these take the same locks, but they do not stand back for an agent.
do $$
declare
  other record;
begin
  for other in
    select j.jobid, j.jobname, j.schedule, j.command from cron.job j
     where j.database = current_database() and coalesce(j.jobname, '') not like 'visit-pacer: %'
       and j.command ~* '(distribute_visits|sync_distribution_counts|purge_old_visits|delete\s+from\s+(public\.)?store_visits)'
  loop
    raise notice 'the job % (%, %) does it too: %; without it: select cron.unschedule(%)',
      other.jobid, coalesce(other.jobname, 'no name'), other.schedule, other.command, other.jobid;
  end loop;
end $$;
