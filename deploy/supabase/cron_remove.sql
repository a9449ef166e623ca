-- Takes down the jobs that cron.sql set up. Run by whoever ran that; any number of times. pg_cron and jobs of yours stay.
do $$
declare
  job record;
begin
  if to_regclass('cron.job') is null then
    raise notice 'pg_cron is not there, so there are no jobs';
    return;
  end if;
  for job in select j.jobid, j.jobname from cron.job j where j.jobname like 'visit-pacer: %' and j.username = current_user loop
    perform cron.unschedule(job.jobid);
    raise notice 'the job "%" is gone', job.jobname;
  end loop;
end $$;
