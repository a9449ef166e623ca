-- Sample rows: two partners, and the guide's two examples while none of theirs is open.
insert into public.partners (id, name) values
  ('e2731c06-58b4-4f37-96c7-f721af43263c', 'Nordlicht Books'),
  ('7d0f6a52-3c1e-4b7e-9a55-0f2b8c1d4e66', 'Casa Verde')
on conflict (id) do nothing;

insert into public.visit_distribution (partner_id, total_visits, time_period, visits_per_unit, is_active, start_time, end_time)
select e.partner_id, e.total_visits, e.time_period, e.visits_per_unit, true, now(), now() + e.length
  from (values
    ('e2731c06-58b4-4f37-96c7-f721af43263c'::uuid, 150000, 'hour', 6250.00, interval '24 hours'),
    ('7d0f6a52-3c1e-4b7e-9a55-0f2b8c1d4e66'::uuid, 2000, 'minute', 33.33, interval '1 hour')
  ) as e (partner_id, total_visits, time_period, visits_per_unit, length)
 where not exists (select from public.visit_distribution v where v.partner_id = e.partner_id and v.end_time > now());
