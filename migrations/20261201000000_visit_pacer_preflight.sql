-- visit-pacer 0 of 7: whether this database can take visit-pacer. It checks everything first and changes nothing where it refuses.
--
-- A refusal names the table, the column, what was found and what to do. What is accepted stands in deploy/REFERENCE.md ("Your own schema").

set local client_min_messages = warning;
set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions

do $$
declare
  refusals text[] := '{}';
  found_one record;
  expected record;
  partner_type oid;
  attribute record;
  accepted boolean;
begin
  if current_setting('server_version_num')::integer < 150000 then
    refusals := refusals || format('the server is PostgreSQL %s; expected 15 or later', current_setting('server_version'));
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    refusals := refusals || format('the transaction is %s; run migrations under read committed', current_setting('transaction_isolation'));
  end if;
  if not has_schema_privilege('public', 'create') then
    refusals := refusals || format('role %s has no CREATE on schema public; run migrate as the owner of the tables', quote_ident(current_user));
  end if;

  -- Relations of the names that visit-pacer uses.
  for found_one in
    select c.relname, c.relkind, c.relnamespace, pg_get_userbyid(c.relowner) as owner, pg_has_role(current_user, c.relowner, 'usage') as owned,
           obj_description(c.oid, 'pg_class') like 'visit-pacer:%' as is_part_of_visit_pacer,
           c.relname in ('partners', 'visit_distribution', 'store_visits') as is_users
      from pg_class c
     where c.relnamespace = 'public'::regnamespace
       and (c.relname in ('partners', 'visit_distribution', 'store_visits', 'visit_distribution_progress', 'visit_distribution_status',
                          'organic_store_visits', 'visit_page_paths', 'visit_user_agents', 'visit_referrers')
            or c.relname like 'visit\_pacer\_%')
       and c.relkind not in ('i', 'I', 'S', 'c', 't')
  loop
    if found_one.is_users and found_one.relkind not in ('r', 'p') then
      refusals := refusals || format('public.%I is not a table; rename it, or give visit-pacer a database where it is one', found_one.relname);
    elsif found_one.is_users and not found_one.owned then
      refusals := refusals || format('table public.%I belongs to role %s; run migrate as %2$s', found_one.relname, quote_ident(found_one.owner));
    elsif not found_one.is_users and found_one.relname not in ('visit_distribution_status', 'organic_store_visits')
          and found_one.is_part_of_visit_pacer is not true and found_one.relname <> 'visit_pacer_migrations' then
      refusals := refusals || format('public.%I exists and is not part of visit-pacer; rename it', found_one.relname);
    elsif found_one.relname in ('visit_distribution_status', 'organic_store_visits') and found_one.relkind not in ('v', 'm') then
      refusals := refusals || format('public.%I exists and is a table; visit-pacer needs the name for a view: rename it', found_one.relname);
    end if;
  end loop;

  -- What would have to be dropped for a function or view of visit-pacer, and what depends on it.
  for found_one in
    select case when o.classid = 'pg_proc'::regclass then 'function ' else 'view ' end || o.name as name,
           string_agg(distinct pg_describe_object(d.classid, d.objid, 0), ', ') as dependants
      from (select 'pg_proc'::regclass as classid, p.oid, p.oid::regprocedure::text as name, obj_description(p.oid, 'pg_proc') as note
              from pg_proc p
             where p.pronamespace = 'public'::regnamespace
               and (p.proname in ('distribute_visits', 'distribute_visits_for_partner', 'sync_distribution_counts', 'purge_old_visits',
                                  'adopt_existing_visits', 'visit_distribution_due') or p.proname like 'visit\_pacer\_%')
            union all
            select 'pg_class'::regclass, c.oid, c.oid::regclass::text, obj_description(c.oid, 'pg_class')
              from pg_class c
             where c.relnamespace = 'public'::regnamespace and c.relname in ('visit_distribution_status', 'organic_store_visits')
               and c.relkind in ('v', 'm')) o
      join pg_depend d on d.refclassid = o.classid and d.refobjid = o.oid and d.deptype = 'n'
      left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
     where (o.note is null or o.note not like 'visit-pacer:%')
       and r.ev_class is distinct from o.oid  -- not its own rule
     group by 1
  loop
    refusals := refusals || format('%s is replaced by one of visit-pacer, and %s depends on it; drop or change that first',
                                   found_one.name, found_one.dependants);
  end loop;

  -- Types of the user's columns.
  select a.atttypid into partner_type from pg_attribute a
   where a.attrelid = to_regclass('public.partners') and a.attname = 'id' and not a.attisdropped;
  if to_regclass('public.partners') is not null and partner_type is null then
    refusals := refusals || 'public.partners has no column id; add it, as uuid, bigint, integer or text'::text;
  elsif partner_type not in ('uuid'::regtype, 'bigint'::regtype, 'integer'::regtype, 'text'::regtype) then
    refusals := refusals || format('public.partners.id is %s; expected uuid, bigint, integer or text', format_type(partner_type, null));
  end if;
  for expected in
    select * from (values
      ('visit_distribution', 'id', 'uuid', true),
      ('visit_distribution', 'partner_id', format_type(coalesce(partner_type, 'uuid'::regtype), null), true),
      ('visit_distribution', 'total_visits', null, true),
      ('visit_distribution', 'time_period', null, true),
      ('visit_distribution', 'visits_per_unit', null, true),
      ('visit_distribution', 'is_active', 'boolean', false),
      ('visit_distribution', 'catch_up', 'numeric', false),
      ('visit_distribution', 'config_version', 'bigint', false),
      ('visit_distribution', 'anchor_units', 'numeric', false),
      ('visit_distribution', 'anchor_at', 'timestamp with time zone', false),
      ('visit_distribution', 'changed_xid', 'xid8', false),
      ('store_visits', 'partner_id', format_type(coalesce(partner_type, 'uuid'::regtype), null), true),
      ('store_visits', 'visited_at', null, true),
      ('store_visits', 'distribution_id', 'uuid', false),
      ('store_visits', 'visit_number', 'bigint', false)
    ) as e (in_table, name, type, needed)
    where to_regclass('public.' || e.in_table) is not null
  loop
    select a.*, format_type(a.atttypid, null) as type into attribute from pg_attribute a
     where a.attrelid = to_regclass('public.' || expected.in_table) and a.attname = expected.name and not a.attisdropped;
    if not found then
      if expected.needed then
        refusals := refusals || format('public.%I has no column %I; add it%s', expected.in_table, expected.name, ', as ' || expected.type);
      end if;
    elsif attribute.type is distinct from expected.type and expected.type is not null then
      refusals := refusals || format('public.%I.%I is %s; expected %s', expected.in_table, expected.name, attribute.type, expected.type);
    elsif attribute.attgenerated <> '' then
      refusals := refusals || format('public.%I.%I is a generated column; visit-pacer has to write it', expected.in_table, expected.name);
    end if;
  end loop;

  -- A column that is read or written by cast: tried with values as they occur.
  for expected in
    select * from (values
      ('visit_distribution', 'total_visits', 'select %s::numeric', '1000'),
      ('visit_distribution', 'visits_per_unit', 'select %s::numeric', '10'),
      ('visit_distribution', 'time_period', 'select %s::text', 'minute'),
      ('visit_distribution', 'start_time', 'select %s::timestamptz', '2026-01-01 00:00:00'),
      ('visit_distribution', 'end_time', 'select %s::timestamptz', '2026-01-01 00:00:00'),
      ('visit_distribution', 'total_distributed', 'select %s::numeric', '1000'),
      ('store_visits', 'visited_at', 'select %s::timestamptz', '2026-01-01 00:00:00')
    ) as e (in_table, name, form, sample)
  loop
    select a.atttypid, a.atttypmod into attribute from pg_attribute a
     where a.attrelid = to_regclass('public.' || expected.in_table) and a.attname = expected.name and not a.attisdropped;
    if found then
      begin
        execute format(expected.form, format('cast(%L::text as %s)', expected.sample, format_type(attribute.atttypid, attribute.atttypmod)));
      exception when others then
        refusals := refusals || format('public.%I.%I is %s, which does not take %L (%s); change its type', expected.in_table, expected.name,
                                       format_type(attribute.atttypid, attribute.atttypmod), expected.sample, sqlerrm);
      end;
    end if;
  end loop;

  -- Keys.
  if to_regclass('public.visit_distribution') is not null and not exists (
    select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
     where i.indrelid = to_regclass('public.visit_distribution') and i.indisunique and i.indnkeyatts = 1 and i.indpred is null
       and a.attname = 'id')
  then
    refusals := refusals || 'public.visit_distribution.id has no primary key or unique constraint; add one'::text;
  end if;
  if to_regclass('public.visit_distribution') is not null and (select relkind from pg_class where oid = to_regclass('public.visit_distribution')) = 'p' then
    refusals := refusals || 'public.visit_distribution is partitioned; it has to be one table'::text;
  end if;
  if to_regclass('public.store_visits') is not null and not exists (
    select from pg_attribute a where a.attrelid = to_regclass('public.store_visits') and a.attname = 'id' and not a.attisdropped)
  then
    refusals := refusals || 'public.store_visits has no column id; add it'::text;
  end if;
  -- Columns that visits fill where they can: refused only where such a column has to be filled and takes no such value.
  for expected in
    select * from (values ('session_duration', 'integer', '90'), ('page_path', 'text', '/products'), ('user_agent', 'text', 'Mozilla/5.0'),
      ('referrer', 'text', 'https://www.google.com/'), ('device_type', 'text', 'desktop'), ('device_type', 'text', 'mobile'),
      ('device_type', 'text', 'tablet')) as e (name, type, sample)
  loop
    select a.atttypid, a.atttypmod into attribute from pg_attribute a
     where a.attrelid = to_regclass('public.store_visits') and a.attname = expected.name and not a.attisdropped
       and a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = '';
    if found then
      begin
        execute format('select %L::%s::%s', expected.sample, expected.type, format_type(attribute.atttypid, attribute.atttypmod));
      exception when others then
        refusals := refusals || format('public.store_visits.%I is %s, which does not take %L; give it a default, make it nullable, or change its type',
                                       expected.name, format_type(attribute.atttypid, attribute.atttypmod), expected.sample);
      end;
    end if;
  end loop;
  select a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = '' as has_to_be_filled, format_type(a.atttypid, null) as type
    into attribute from pg_attribute a
   where a.attrelid = to_regclass('public.store_visits') and a.attname = 'id' and not a.attisdropped;
  if found and attribute.has_to_be_filled and attribute.type <> 'uuid' then
    refusals := refusals || format('public.store_visits.id is %s without a default; give it a default or an identity, or make it uuid', attribute.type);
  end if;

  if cardinality(refusals) > 0 then
    raise exception using errcode = 'VP000',
      message = 'visit-pacer cannot be installed in this database; nothing was changed. ' || array_to_string(refusals, '. '),
      hint = 'Correct what is named, then run this again.';
  end if;
end $$;

create table if not exists public.visit_pacer_migrations (
  version text primary key,
  applied_at timestamptz not null default clock_timestamp()
);
comment on table public.visit_pacer_migrations is 'visit-pacer: the applied migrations';

insert into public.visit_pacer_migrations (version) values ('20261201000000') on conflict do nothing;
