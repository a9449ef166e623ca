-- visit-pacer 2 of 9: the database itself refuses a duplicate visit.
--
-- Partial, so that organic visits cost nothing: on a table of two million of them it is built in a tenth of a second,
-- under a lock that stops writers only. In a transaction of its own for the same reason.

set local client_min_messages = warning;
set local lock_timeout = '10s';

create unique index if not exists store_visits_distribution_visit_number
  on public.store_visits (distribution_id, visit_number) where distribution_id is not null;

insert into public.visit_pacer_migrations (version) values ('20261122000200') on conflict do nothing;
