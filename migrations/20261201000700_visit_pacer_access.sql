-- visit-pacer 7 of 7: the publication of Realtime, the rights of service_role, and the distributions that existed before.

-- visit_distribution drives the agent; the canary proves that events still arrive. Nothing else of ours is published.
do $$
declare
  t text;
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
  if not (select puballtables from pg_publication where pubname = 'supabase_realtime') then
    foreach t in array array['visit_distribution', 'visit_pacer_canary'] loop
      if not exists (select from pg_publication_tables
                      where pubname = 'supabase_realtime' and schemaname = 'public' and tablename = t) then
        execute format('alter publication supabase_realtime add table public.%I', t);
        if t = 'visit_distribution' then
          insert into public.visit_pacer_replaced (name, definition)
          values ('publication supabase_realtime', 'alter publication supabase_realtime drop table public.visit_distribution');
        end if;
      end if;
    end loop;
  end if;
exception when insufficient_privilege then
  raise warning 'visit-pacer: % - have the owner of the publication run: alter publication supabase_realtime add table public.visit_distribution, public.visit_pacer_canary;', sqlerrm;
end $$;

-- On a user table that existed before, service_role gets SELECT (Realtime checks it); nothing else changes.
do $$
declare
  t text;
begin
  if exists (select from pg_roles where rolname = 'service_role') then
    foreach t in array array['partners', 'visit_distribution', 'store_visits'] loop
      if not has_table_privilege('service_role', format('public.%I', t), 'select') then
        insert into public.visit_pacer_replaced (name, definition)
        values (t, format('revoke select on table public.%I from service_role', t));
        execute format('grant select on table public.%I to service_role', t);
      end if;
    end loop;
  end if;
end $$;

-- Distributions that existed before the triggers.
select public.visit_pacer_initialise();

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000700') on conflict do nothing;
