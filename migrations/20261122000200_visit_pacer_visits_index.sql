-- visit-pacer 2 of 9: the database itself refuses a duplicate visit.
--
-- Partial, so that organic visits cost nothing: on a table of two million of them it is built in a tenth of a second,
-- under a lock that stops writers only. In a transaction of its own for the same reason.

set local client_min_messages = warning;
set local lock_timeout = '10s';

-- On a partitioned table a unique index has to hold the partition key too, and cannot be had where that is an expression:
-- there, duplicates are prevented by the compare-and-set of progress alone.
do $$
declare
  partition_key text;
  of_expression boolean;
begin
  select string_agg(', ' || quote_ident(a.attname), ''), bool_or(k.attnum = 0) into partition_key, of_expression
    from pg_partitioned_table p cross join unnest(p.partattrs::smallint[]) k (attnum)
    left join pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.attnum and k.attnum > 0
   where p.partrelid = 'public.store_visits'::regclass;
  execute format(
    'create %s index if not exists store_visits_distribution_visit_number
       on public.store_visits (distribution_id, visit_number%s) where distribution_id is not null',
    case when of_expression then '' else 'unique' end, partition_key);
end $$;

insert into public.visit_pacer_migrations (version) values ('20261122000200') on conflict do nothing;
