create table partners (id uuid primary key default gen_random_uuid(), name text);
create table visit_distribution (
  id uuid primary key default gen_random_uuid(), partner_id uuid references partners (id), total_visits integer,
  time_period varchar(10) check (time_period in ('second', 'minute', 'hour', 'day')), visits_per_unit numeric(10,2),
  is_active boolean default true, start_time timestamptz default now(), end_time timestamptz, total_distributed integer default 0,
  last_distribution timestamptz, created_at timestamptz default now(), updated_at timestamptz default now());
create table store_visits (
  id uuid primary key default gen_random_uuid(), partner_id uuid not null references partners (id) on delete cascade,
  visited_at timestamptz default now(), session_duration integer, page_path text, created_at timestamptz default now());

insert into partners values
  ('e2731c06-58b4-4f37-96c7-f721af43263c', 'of the guide'), ('00000000-0000-0000-0000-000000000002', 'another');
insert into visit_distribution (id, partner_id, total_visits, time_period, visits_per_unit, start_time, end_time, total_distributed) values
  ('d0000000-0000-0000-0000-000000000001', 'e2731c06-58b4-4f37-96c7-f721af43263c', 150000, 'hour', 6250,
   now() - interval '1 hour', now() + interval '23 hours', 500);
insert into store_visits (partner_id, visited_at)
  select 'e2731c06-58b4-4f37-96c7-f721af43263c', now() - n * interval '1 second' from generate_series(1, 500) n;

create function distribute_visits() returns void language plpgsql as $$ begin end $$;
revoke all on function distribute_visits() from public;
grant execute on function distribute_visits() to authenticated;
create function distribute_visits_for_partner(p_partner_id uuid, p_visits integer default 100) returns table (x integer)
  language sql as $$ select 1 $$;
create function sync_distribution_counts() returns table (partner_id uuid, old_count integer) language sql as $$ select null::uuid, 1 $$;
create function purge_old_visits(days integer) returns void language sql as $$ select $$;
create view visit_distribution_status as select id, partner_id from visit_distribution;
grant select on visit_distribution_status to anon;
create materialized view organic_store_visits as select * from store_visits;
create function touch() returns trigger language plpgsql as $$ begin new.updated_at := now(); return new; end $$;
create trigger touch before update on visit_distribution for each row execute function touch();
