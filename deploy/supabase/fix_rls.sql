-- Row level security for partners, visit_distribution and store_visits: partners see what is theirs, the public sees nothing, the
-- service role and the agent's own role go on. Run by the owner of the tables, in the SQL Editor or with psql; any number of times.
-- It says what it changed. visit-pacer migrate leaves all of this alone, since it can break a page of yours that relies on it.
--
-- Whose is whose: public.visit_pacer_partner_users, a row for each person (the id of auth.users) and partner. Empty, nobody sees anything:
--   insert into visit_pacer_partner_users (user_id, partner_id) values ('the id of a user', 'the id of a partner');
--
-- A policy of yours that opens a table to everybody without a condition (using (true)) makes way: its text is kept in
-- visit_pacer_replaced. Those with a condition stay, and are shown: they open rows beside the ones of this file.
begin;
set local lock_timeout = '3s';  -- somebody is in a long transaction: run it again
set local client_min_messages = notice;

do $$
begin
  if to_regclass('public.visit_pacer_replaced') is null then
    raise exception using message = 'the schema of visit-pacer is missing', hint = 'run visit-pacer migrate first';
  end if;
  if (select count(*) from pg_roles where rolname in ('anon', 'authenticated', 'service_role')) < 3 then
    raise exception 'the roles anon, authenticated and service_role are not all here; this file is for a Supabase project';
  end if;
end $$;

-- The mapping. Each person sees their own lines of it.
do $$
declare
  person constant text := case when to_regprocedure('auth.uid()') is not null then 'auth.uid()'
    else 'nullif(current_setting(''request.jwt.claims'', true), '''')::jsonb ->> ''sub''' end;
  id_type constant text := (select format_type(a.atttypid, a.atttypmod) from pg_attribute a
                             where a.attrelid = 'public.partners'::regclass and a.attname = 'id' and not a.attisdropped);
begin
  if to_regclass('public.visit_pacer_partner_users') is null then
    execute format('create table public.visit_pacer_partner_users (user_id uuid not null,
      partner_id %s not null references public.partners (id) on delete cascade, primary key (user_id, partner_id))', id_type);
    raise notice 'made: the table visit_pacer_partner_users; insert who belongs to which partner';
  end if;
  alter table public.visit_pacer_partner_users enable row level security;
  revoke all on table public.visit_pacer_partner_users from public, anon, authenticated;
  grant select on table public.visit_pacer_partner_users to authenticated;
  grant select, insert, update, delete on table public.visit_pacer_partner_users to service_role;
  drop policy if exists visit_pacer_own on public.visit_pacer_partner_users;
  execute format('create policy visit_pacer_own on public.visit_pacer_partner_users for select to authenticated using (user_id = (select (%s)::uuid))', person);
end $$;

-- Policies of the user's that open a table to everybody, and those that have a condition.
do $$
declare
  theirs record;
  whose text;
begin
  for theirs in
    select p.*, c.oid::regclass as of_table, array(select case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end from unnest(p.polroles) r) as whom,
           pg_get_expr(p.polqual, p.polrelid) as sees, pg_get_expr(p.polwithcheck, p.polrelid) as writes
      from pg_policy p join pg_class c on c.oid = p.polrelid
     where c.oid in ('public.partners'::regclass, 'public.visit_distribution'::regclass, 'public.store_visits'::regclass)
       and p.polpermissive and p.polcmd <> 'a' and p.polname not like 'visit\_pacer\_%'
       and (0 = any (p.polroles) or p.polroles && array['anon'::regrole::oid, 'authenticated'::regrole::oid])
  loop
    whose := array_to_string(theirs.whom, ', ');
    if theirs.sees is distinct from 'true' then
      raise notice 'kept: your policy % on % lets % at rows where %', theirs.polname, theirs.of_table, whose, theirs.sees;
      continue;
    end if;
    insert into public.visit_pacer_replaced (name, definition)
    values (format('policy %s on %s', theirs.polname, theirs.of_table),
            format('create policy %I on %s for %s to %s using (true)%s', theirs.polname, theirs.of_table,
              case theirs.polcmd when 'r' then 'select' when 'w' then 'update' when 'd' then 'delete' else 'all' end, whose,
              coalesce(' with check (' || theirs.writes || ')', '')));
    execute format('drop policy %I on %s', theirs.polname, theirs.of_table);
    raise notice 'dropped: your policy % on % opened every row to %; its text is kept in visit_pacer_replaced', theirs.polname, theirs.of_table, whose;
  end loop;
end $$;

do $$
declare
  t text;
  own_rows text;
begin
  foreach t in array array['partners', 'visit_distribution', 'store_visits'] loop
    if not (select c.relrowsecurity from pg_class c where c.oid = format('public.%I', t)::regclass) then
      execute format('alter table public.%I enable row level security', t);
      raise notice 'on: row level security of %', t;
    end if;

    -- The public reads nothing. An INSERT of its own (a page that records visits) is left to your policies.
    if has_table_privilege('anon', format('public.%I', t), 'insert')
       and not exists (select from pg_policy p where p.polrelid = format('public.%I', t)::regclass and p.polcmd in ('a', '*')
                          and (0 = any (p.polroles) or 'anon'::regrole = any (p.polroles))) then
      raise notice 'closed: anon could insert into %, and no policy says that it may; where a page of yours does: create policy … on % for insert to anon with check (…)', t, t;
    end if;
    if has_any_column_privilege('anon', format('public.%I', t), 'select') then
      raise notice 'taken: anon could read %', t;
    end if;
    execute format('revoke select, update, delete, truncate, references, trigger on table public.%I from public, anon', t);

    -- Partners read what is theirs.
    own_rows := format('%I = any (array(select m.partner_id from public.visit_pacer_partner_users m))', case t when 'partners' then 'id' else 'partner_id' end);
    execute format('grant select on table public.%I to authenticated', t);
    execute format('revoke truncate, references, trigger on table public.%I from authenticated', t);
    execute format('drop policy if exists visit_pacer_own on public.%I', t);
    execute format('create policy visit_pacer_own on public.%I for select to authenticated using (%s)', t, own_rows);

    -- The service role passes by row level security on Supabase; where it does not, a policy lets it.
    execute format('grant select, insert, update, delete on table public.%I to service_role', t);
    execute format('drop policy if exists visit_pacer_service on public.%I', t);
    if not (select r.rolbypassrls from pg_roles r where r.rolname = 'service_role') then
      execute format('create policy visit_pacer_service on public.%I for all to service_role using (true) with check (true)', t);
      raise notice 'let in: service_role to every row of %', t;
    end if;
  end loop;

  -- The agent's own role: the same policies as in role.sql.
  if exists (select from pg_roles where rolname = 'visit_pacer') then
    drop policy if exists visit_pacer_agent on public.visit_distribution;
    create policy visit_pacer_agent on public.visit_distribution for all to visit_pacer using (true) with check (true);
    drop policy if exists visit_pacer_agent on public.store_visits;
    create policy visit_pacer_agent on public.store_visits for all to visit_pacer
      using (distribution_id is not null) with check (distribution_id is not null);
    raise notice 'let in: visit_pacer to visit_distribution and to the visits that it generates';
  end if;
  raise notice 'done: authenticated reads what visit_pacer_partner_users says is theirs, anon reads nothing';
end $$;
commit;
