-- visit-pacer 6 of 9: believable visits: the catalogue of page paths, and the generator of the SQL functions.

-- The default catalogue: thirty pages of a shop with a blog, weights by rank as in Zipf's law with exponent 1.07.
-- It is a start, to be edited: sown once, the first time that this file is applied.
insert into public.visit_page_paths (path, weight)
select catalogue.path, catalogue.weight
  from (values
    ('/', 1000.0),
    ('/products', 476.3),
    ('/search', 308.7),
    ('/products/new', 226.9),
    ('/sale', 178.7),
    ('/blog', 147.0),
    ('/cart', 124.7),
    ('/categories/home', 108.1),
    ('/about', 95.3),
    ('/products/linen-shirt', 85.1),
    ('/categories/kitchen', 76.9),
    ('/contact', 70.0),
    ('/checkout', 64.3),
    ('/products/oak-table', 59.4),
    ('/blog/how-to-choose-a-mattress', 55.2),
    ('/account', 51.5),
    ('/products/wool-blanket', 48.2),
    ('/faq', 45.4),
    ('/shipping', 42.8),
    ('/categories/garden', 40.5),
    ('/blog/ten-small-kitchens', 38.5),
    ('/products/desk-lamp', 36.6),
    ('/pricing', 34.9),
    ('/returns', 33.4),
    ('/products/ceramic-mug', 31.9),
    ('/stores', 30.6),
    ('/blog/caring-for-wood', 29.4),
    ('/wishlist', 28.3),
    ('/newsletter', 27.2),
    ('/careers', 26.3)
  ) as catalogue (path, weight)
 where not exists (select from public.visit_pacer_migrations m where m.version = '20261122000550')
on conflict do nothing;

-- What a generated visit carries beside its number and its moment, for the SQL functions.
--
-- The shapes and the id layout are those of the agent's generator (src/domain/visit.rs), not the same values; the two lists
-- are those of src/domain/visit/traffic.rs, row by row. Drawn from sha256(distribution, number) alone: the same visit comes
-- out the same whenever and beside whatever others it is asked for. A partner's own page paths are used in place of the
-- general ones, not beside them; where there are none at all, every path is '/'.
--
-- Parallel arrays, one element a visit, of any number of distributions. It reads public.visit_page_paths with the rights of whoever calls it: a catalogue
-- that row level security hides is an empty one.
create or replace function public.visit_pacer_generate(
  distributions uuid[], partners uuid[], numbers bigint[], moments timestamptz[])
returns table (distribution_id uuid, partner_id uuid, id uuid, visit_number bigint, visited_at timestamptz,
               session_duration integer, page_path text, user_agent text, referrer text, device_type text)
language sql stable set search_path = '' as $$
  with agents (weight, device, agent) as (values  -- as of November 2026; visits of a thousand
    (106, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (48, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (20, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Safari/537.36'),
    (12, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/146.0.0.0 Safari/537.36'),
    (4, 'desktop', 'Mozilla/5.0 (Windows NT 6.1; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/109.0.0.0 Safari/537.36'),
    (36, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (16, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (9, 'desktop', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (5, 'desktop', 'Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (38, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0'),
    (14, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/155.0.0.0 Safari/537.36 Edg/155.0.0.0'),
    (3, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0'),
    (6, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/152.0.0.0 Safari/537.36 OPR/136.0.0.0'),
    (3, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Safari/537.36 OPR/135.0.0.0'),
    (12, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (7, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:159.0) Gecko/20100101 Firefox/159.0'),
    (3, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0'),
    (4, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (4, 'desktop', 'Mozilla/5.0 (X11; Linux x86_64; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (9, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/27.0 Safari/605.1.15'),
    (17, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6 Safari/605.1.15'),
    (4, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Safari/605.1.15'),
    (239, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Mobile Safari/537.36'),
    (75, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36'),
    (28, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Mobile Safari/537.36'),
    (14, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/146.0.0.0 Mobile Safari/537.36'),
    (30, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/30.0 Chrome/143.0.0.0 Mobile Safari/537.36'),
    (4, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36 EdgA/156.0.0.0'),
    (5, 'mobile', 'Mozilla/5.0 (Android 16; Mobile; rv:160.0) Gecko/160.0 Firefox/160.0'),
    (46, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/27.0 Mobile/15E148 Safari/604.1'),
    (44, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6.2 Mobile/15E148 Safari/604.1'),
    (34, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6.1 Mobile/15E148 Safari/604.1'),
    (14, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.5.2 Mobile/15E148 Safari/604.1'),
    (12, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.7.5 Mobile/15E148 Safari/604.1'),
    (6, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148 Safari/604.1'),
    (20, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (8, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 27_0_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (16, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/439.4.980558000 Mobile/15E148 Safari/604.1'),
    (3, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/156.1 Mobile/15E148 Safari/604.1'),
    (8, 'tablet', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (4, 'tablet', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Safari/537.36'),
    (6, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6 Mobile/15E148 Safari/604.1'),
    (3, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (1, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/439.4.980558000 Mobile/15E148 Safari/604.1')
  ), referrers (desktop_weight, handheld_weight, site) as (values  -- of a thousand on that device
    (420, 430, null),
    (370, 320, 'https://www.google.com/'),
    (52, 9, 'https://www.bing.com/'),
    (16, 8, 'https://duckduckgo.com/'),
    (9, 6, 'https://search.yahoo.com/'),
    (4, 2, 'https://www.ecosia.org/'),
    (24, 14, 'https://chatgpt.com/'),
    (5, 2, 'https://www.perplexity.ai/'),
    (18, 0, 'https://www.facebook.com/'),
    (10, 0, 'https://l.facebook.com/'),
    (0, 38, 'https://m.facebook.com/'),
    (0, 24, 'https://lm.facebook.com/'),
    (6, 66, 'https://l.instagram.com/'),
    (2, 20, 'https://www.tiktok.com/'),
    (10, 20, 'https://t.co/'),
    (16, 14, 'https://www.youtube.com/'),
    (18, 10, 'https://www.reddit.com/'),
    (14, 5, 'https://www.linkedin.com/'),
    (6, 12, 'https://www.pinterest.com/')
  ),

  -- Items, and where each begins as a share of one: width_bucket() finds the item of a draw by bisection.
  agent_choice as materialized (
    select array_agg(c.agent order by c.at) as items, array_agg(c.device order by c.at) as devices,
           array_agg(c.start order by c.at) as starts
      from (select a.agent, a.device, row_number() over sorted as at,
                   ((sum(a.weight) over sorted - a.weight)::numeric / sum(a.weight) over ())::float8 as start
              from agents a window sorted as (order by a.agent)) c
  ), referrer_choice as materialized (
    select array_agg(c.site order by c.at) as items,
           array_agg(c.desktop_start order by c.at) as desktop_starts,
           array_agg(c.handheld_start order by c.at) as handheld_starts
      from (select r.site, row_number() over sorted as at,
                   ((sum(r.desktop_weight) over sorted - r.desktop_weight)::numeric
                      / sum(r.desktop_weight) over ())::float8 as desktop_start,
                   ((sum(r.handheld_weight) over sorted - r.handheld_weight)::numeric
                      / sum(r.handheld_weight) over ())::float8 as handheld_start
              from referrers r window sorted as (order by r.site)) c
  ), catalogues as (   -- by whose they are: a partner's, or everybody's (null)
    select c.partner_id, array_agg(c.path order by c.at) as items, array_agg(c.start order by c.at) as starts
      from (select p.partner_id, p.path, row_number() over sorted as at,
                   ((sum(p.weight) over sorted - p.weight) / sum(p.weight) over (partition by p.partner_id))::float8 as start
              from public.visit_page_paths p
             where p.partner_id is null or p.partner_id = any (visit_pacer_generate.partners)
            window sorted as (partition by p.partner_id order by p.path)) c
     group by c.partner_id
  ), path_choice as materialized (
    select asked.partner, coalesce(own.items, everybodys.items) as items, coalesce(own.starts, everybodys.starts) as starts
      from (select distinct unnest(visit_pacer_generate.partners) as partner) asked
      left join catalogues own on own.partner_id = asked.partner
      left join catalogues everybodys on everybodys.partner_id is null
  ),

  -- 64 hexadecimal digits a visit: the first 19 are the tail of its id, the last 40 five draws, uniform over [0, 1).
  hashed as (
    select v.distribution, v.partner, v.number, v.moment,
           encode(sha256(uuid_send(v.distribution) || int8send(v.number)), 'hex') as hash
      from unnest(distributions, partners, numbers, moments) as v (distribution, partner, number, moment)
  ), drawn as (
    select h.distribution, h.partner, h.number, h.moment, h.hash,
           ('x' || substr(h.hash, 25, 8))::bit(32)::bigint / 4294967296::float8 as agent_draw,
           ('x' || substr(h.hash, 33, 8))::bit(32)::bigint / 4294967296::float8 as referrer_draw,
           ('x' || substr(h.hash, 41, 8))::bit(32)::bigint / 4294967296::float8 as path_draw,
           sqrt(-2 * ln(1 - ('x' || substr(h.hash, 49, 8))::bit(32)::bigint / 4294967296::float8)) as radius,
           2 * pi() * ('x' || substr(h.hash, 57, 8))::bit(32)::bigint / 4294967296::float8 as angle
      from hashed h
  ), chosen as (
    -- Box and Muller: two normal numbers of one draw. The second is used where the first session is out of bounds.
    select d.distribution, d.partner, d.number, d.moment, d.hash, d.referrer_draw, d.path_draw,
           width_bucket(d.agent_draw, a.starts) as agent_at, a.items, a.devices,
           floor(90 * exp(1.05 * d.radius * cos(d.angle))) as session,
           floor(90 * exp(1.05 * d.radius * sin(d.angle))) as other_session
      from drawn d cross join agent_choice a
  )
  select c.distribution, c.partner,
         (lpad(to_hex(floor(extract(epoch from c.moment) * 1000)::bigint), 12, '0')    -- a version 7 UUID (RFC 9562)
            || '7' || substr(c.hash, 1, 3)
            || translate(substr(c.hash, 4, 1), '0123456789abcdef', '89ab89ab89ab89ab') || substr(c.hash, 5, 15))::uuid,
         c.number,
         c.moment,
         case when c.session between 5 and 3600 then c.session
              when c.other_session between 5 and 3600 then c.other_session
              else 90 end::integer,
         coalesce(p.items[width_bucket(c.path_draw, p.starts)], '/'),
         c.items[c.agent_at],
         r.items[width_bucket(c.referrer_draw,
           case when c.devices[c.agent_at] = 'desktop' then r.desktop_starts else r.handheld_starts end)],
         c.devices[c.agent_at]
    from chosen c cross join referrer_choice r join path_choice p on p.partner = c.partner
$$;
comment on function public.visit_pacer_generate is 'visit-pacer: believable visits, drawn from (distribution, number)';

select public.visit_pacer_keep_private();

insert into public.visit_pacer_migrations (version) values ('20261122000550') on conflict do nothing;
