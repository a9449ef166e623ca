-- Every visit belongs to a partner that is there: the foreign key store_visits.partner_id → partners.id. Where it is missing it is
-- made; where it points elsewhere it is replaced; where it was never validated it is validated. Visits of partners that are not
-- there are counted and shown, never deleted. Run by the owner of the tables, in the SQL Editor or with psql; any number of times.
--
-- Two transactions, so that no lock is long: the key is made NOT VALID (writers wait for milliseconds, and new visits are checked from
-- here on), then what is stored is checked, while everybody goes on writing.

begin;
set local lock_timeout = '3s';  -- somebody is in a long transaction: run it again
do $$
declare
  visits constant regclass := to_regclass('public.store_visits');
  partners constant regclass := to_regclass('public.partners');
  of_visits record;
  of_partners record;
  wrong record;
begin
  if visits is null or partners is null then
    raise exception 'there is no table %; run visit-pacer migrate first', case when visits is null then 'store_visits' else 'partners' end;
  end if;
  if (select c.relkind from pg_class c where c.oid = visits) = 'p' then
    raise exception using message = 'store_visits is partitioned; PostgreSQL has no NOT VALID foreign key for it as a whole',
      hint = 'add the key to each partition, NOT VALID, validate these, and add it to store_visits in the end';
  end if;
  select a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod) as type into of_visits
    from pg_attribute a where a.attrelid = visits and a.attname = 'partner_id' and not a.attisdropped;
  if not found then
    raise exception using message = 'store_visits has no column partner_id',
      hint = 'alter table public.store_visits add column partner_id uuid; fill it, and run this again';
  end if;
  select a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod) as type into of_partners
    from pg_attribute a where a.attrelid = partners and a.attname = 'id' and not a.attisdropped;
  if of_visits.atttypid is distinct from of_partners.atttypid then
    raise exception using message = format('store_visits.partner_id is %s and partners.id is %s; a foreign key needs one type', of_visits.type, of_partners.type),
      detail = 'To change the type rewrites the table, under a lock that stops everybody for as long as that takes: seconds for a million visits.',
      hint = format('what would not fit: select partner_id from public.store_visits where partner_id::text not in (select id::text from public.partners) limit 10; '
        'then, at a quiet hour: alter table public.store_visits alter column partner_id type %s using partner_id::text::%s; and run this again',
        of_partners.type, of_partners.type);
  end if;
  if not exists (select from pg_index i where i.indrelid = partners and i.indisunique and i.indisvalid and i.indpred is null
                    and i.indnkeyatts = 1 and i.indkey[0] = of_partners.attnum) then
    raise exception using message = 'partners.id is not unique: it has neither a primary key nor a unique index',
      hint = 'twice there: select id, count(*) from public.partners group by id having count(*) > 1; then: alter table public.partners add primary key (id); and run this again';
  end if;

  for wrong in
    select k.conname, pg_get_constraintdef(k.oid) as definition
      from pg_constraint k
     where k.conrelid = visits and k.contype = 'f' and of_visits.attnum = any (k.conkey)
       and not (k.confrelid = partners and k.conkey = array[of_visits.attnum] and k.confkey = array[of_partners.attnum])
  loop
    execute format('alter table public.store_visits drop constraint %I', wrong.conname);
    raise notice 'replaced: the foreign key % was %', wrong.conname, wrong.definition;
  end loop;
  if exists (select from pg_constraint k where k.conrelid = visits and k.contype = 'f' and k.confrelid = partners
                and k.conkey = array[of_visits.attnum] and k.confkey = array[of_partners.attnum]) then
    raise notice 'the foreign key store_visits.partner_id → partners.id is there';
    return;
  end if;
  execute format('alter table public.store_visits add constraint %I foreign key (partner_id) references public.partners (id) not valid',
    case when exists (select from pg_constraint k where k.conrelid = visits and k.conname = 'store_visits_partner_id_fkey')
         then 'store_visits_partner_id_partners_fkey' else 'store_visits_partner_id_fkey' end);
  raise notice 'made: the foreign key store_visits.partner_id → partners.id; new visits are checked from now on';
end $$;
commit;

begin;
set local lock_timeout = '3s';
set local statement_timeout = 0;  -- it reads the whole table, and holds nobody up
do $$
declare
  unchecked record;
  orphans bigint;
  sample text;
begin
  for unchecked in
    select k.conname from pg_constraint k
     where k.conrelid = 'public.store_visits'::regclass and k.contype = 'f' and k.confrelid = 'public.partners'::regclass and not k.convalidated
  loop
    select sum(o.visits), string_agg(format('%s (%s)', o.partner_id, o.visits), ', ' order by o.visits desc) filter (where o.nth <= 10)
      into orphans, sample
      from (select s.partner_id, count(*) as visits, row_number() over (order by count(*) desc, s.partner_id) as nth
              from public.store_visits s
             where s.partner_id is not null and not exists (select from public.partners p where p.id = s.partner_id)
             group by s.partner_id) o;
    if orphans > 0 then
      raise warning using message = format('%s visits belong to partners that are not there; they stay, and the key holds for new visits only', orphans),
        detail = format('partner_id (visits): %s', sample),
        hint = 'insert these partners, or give the visits to others: update public.store_visits set partner_id = …; then run this again';
    else
      execute format('alter table public.store_visits validate constraint %I', unchecked.conname);
      raise notice 'checked: every visit that is stored belongs to a partner that is there';
    end if;
  end loop;
end $$;
commit;
