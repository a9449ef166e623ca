-- visit-pacer 8 of 9: what is published to Realtime, and that nobody but service_role calls or reads what is ours.

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
  raise warning 'visit-pacer: % — have the owner of the publication run: alter publication supabase_realtime add table public.visit_distribution, public.visit_pacer_canary;', sqlerrm;
end $$;

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000700') on conflict do nothing;
