//! The recorded scenarios: what the real server did, what the product's session must report, and whether the demo's server must do
//! the same.

/// One recording.
pub struct Scenario {
    /// The file's name.
    pub name: &'static str,
    /// What the real server did.
    pub seen: &'static str,
    /// Its connections are those of one client that reconnected, not of several clients.
    pub as_one: bool,
    /// Channels, and what the product's session reports in their place: confirmations, changes in a row, ends with their kind.
    pub told: &'static [(&'static str, &'static str)],
    /// What the demo's server must do too.
    pub coverage: Coverage,
}

/// How much of a scenario the demo's server must do.
pub enum Coverage {
    /// All of it.
    All,
    /// All but these connections, each for a reason.
    AllBut(&'static [(&'static str, &'static str)]),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

use Coverage::{All, AllBut, Nothing};

/// Why connections with a filter or a selection of columns are left out.
const NO_FILTERS: &str = "filters and selections are refused: the agent has none";

/// All of them, in the order of their names.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "01_join_service_role",
        seen: "a cold server confirms the subscription 1.7 s after the join's reply",
        as_one: false,
        told: &[("", "live")],
        coverage: All,
    },
    Scenario {
        name: "01b_join_minimal_presence_off",
        seen: "a warm server confirms within 15 ms",
        as_one: false,
        told: &[("", "live")],
        coverage: All,
    },
    Scenario {
        name: "02_insert_update_delete",
        seen: "each change is sent, under both replica identities; TRUNCATE is not",
        as_one: false,
        told: &[("", "live, 9 changed (2 ids)")],
        coverage: All,
    },
    Scenario {
        name: "02b_types",
        seen: "all types; a row without a primary key is sent as an error",
        as_one: false,
        told: &[("types", "live, 4 changed (0 ids, 4 damaged)")],
        coverage: All,
    },
    Scenario {
        name: "03_no_heartbeat",
        seen: "a client that sends nothing is closed with 1000 after 66 s",
        as_one: false,
        told: &[
            ("silent", "live, down (network, new socket)"),
            ("heartbeats", "live"),
        ],
        coverage: Nothing("it passes by time; tests/realtime_server.rs closes an idle client"),
    },
    Scenario {
        name: "04_auth_http_and_join",
        seen: "keys refused at the socket, tokens refused at the join, a role that does not exist",
        as_one: false,
        told: &[
            ("7 channels", "down (key)"),
            (
                "join with bad signature access_token, join with malformed access_token",
                "down (key, new socket)",
            ),
            (
                "join with expired access_token, good apikey",
                "down (expired, new socket)",
            ),
            ("unknown tenant host", "down (network)"),
            ("host without label", "down (project)"),
            ("unknown role", "down (channel)"),
            (
                "apikey in x-api-key header, join with sb_ access_token",
                "live",
            ),
        ],
        coverage: AllBut(&[
            ("unknown tenant host", "the name did not resolve"),
            (
                "host without label",
                "there is one project, whatever the host",
            ),
        ]),
    },
    Scenario {
        name: "04b_access_token_refresh",
        seen: "a new token confirms the subscription again; a bad one closes the channel",
        as_one: false,
        told: &[(
            "",
            "live, live, 1 changed (1 ids), live, down (expired, new socket), live, down (key, new socket), live, down (key, new socket)",
        )],
        coverage: All,
    },
    Scenario {
        name: "04c_token_expires_in_session",
        seen: "at its end a token closes the channel, not the socket; a fresh one is accepted",
        as_one: false,
        told: &[(
            "",
            "live, 7 changed (7 ids), down (expired, new socket), down (expired, new socket), live, 1 changed (1 ids)",
        )],
        coverage: All,
    },
    Scenario {
        name: "04d_token_refreshed_before_expiry",
        seen: "a token that is refreshed in time interrupts nothing",
        as_one: false,
        told: &[("", "live, 14 changed (14 ids), live, 6 changed (6 ids)")],
        coverage: All,
    },
    Scenario {
        name: "05_filters_and_tables",
        seen: "a bad filter or table kills the subscription after a join that was granted",
        as_one: false,
        told: &[
            ("5 channels", "down (channel)"),
            ("t_mixed, t_none, t_noschema, t_notpub", "down (table)"),
            ("f_empty", "live"),
            ("5 channels", "live, 1 changed (1 ids)"),
            ("rls_anon_nogrant", "live, 2 changed (0 ids, 2 damaged)"),
            ("f_ok", "live, 2 changed (2 ids)"),
            ("rls_svc", "live, 3 changed (1 ids)"),
        ],
        coverage: AllBut(&[
            ("f_ok", NO_FILTERS),
            ("f_and", NO_FILTERS),
            ("f_bad1", NO_FILTERS),
            ("f_bad2", NO_FILTERS),
            ("f_bad3", NO_FILTERS),
            ("f_bad4", NO_FILTERS),
            ("sel", NO_FILTERS),
        ]),
    },
    Scenario {
        name: "05b_filter_with_replica_identity_full",
        seen: "with the whole old row a filter still drops what leaves it",
        as_one: false,
        told: &[("f", "live, 3 changed (2 ids)")],
        coverage: Nothing(NO_FILTERS),
    },
    Scenario {
        name: "06_vsn_100",
        seen: "a whole life in version 1.0.0; the client leaves at the end",
        as_one: false,
        told: &[("", "live, 2 changed (1 ids), live, down (channel)")],
        coverage: All,
    },
    Scenario {
        name: "06_vsn_200",
        seen: "a whole life in version 2.0.0; the client leaves at the end",
        as_one: false,
        told: &[(
            "",
            "live, 1 changed (1 ids), live, 1 changed (1 ids), down (channel)",
        )],
        coverage: All,
    },
    Scenario {
        name: "06_vsn_other_10",
        seen: "an unknown version is refused with 403",
        as_one: false,
        told: &[("", "down (project)")],
        coverage: All,
    },
    Scenario {
        name: "06_vsn_other_300",
        seen: "an unknown version is refused with 403",
        as_one: false,
        told: &[("", "down (project)")],
        coverage: All,
    },
    Scenario {
        name: "06_vsn_other_none",
        seen: "no version is 1.0.0",
        as_one: false,
        told: &[("", "live")],
        coverage: All,
    },
    Scenario {
        name: "07_tx_100_rows",
        seen: "a transaction of 100 rows arrives at once and in order",
        as_one: false,
        told: &[("", "live, 300 changed (100 ids)")],
        coverage: All,
    },
    Scenario {
        name: "07_tx_1_rows",
        seen: "a transaction of one row",
        as_one: false,
        told: &[("", "live, 3 changed (1 ids)")],
        coverage: All,
    },
    Scenario {
        name: "07_tx_5000_rows",
        seen: "a transaction of 5,000 rows arrives whole (the recording kept three of its frames)",
        as_one: false,
        told: &[("", "live, 3 changed (3 ids)")],
        coverage: Nothing(
            "its frames were not recorded; tests/realtime_server.rs sends 20,000 rows",
        ),
    },
    Scenario {
        name: "07b_tx_100_rows_two_tables_and_order",
        seen: "transactions arrive in commit order, tables mixed",
        as_one: false,
        told: &[("", "live, 10 changed (3 ids, 4 damaged)")],
        coverage: Nothing(
            "its statements were not recorded; tests/realtime_server.rs shows the order",
        ),
    },
    Scenario {
        name: "07c_payload_over_1MB",
        seen: "a row over 1 MB arrives without its large columns",
        as_one: false,
        told: &[("big", "live, 15 changed (0 ids, 15 damaged)")],
        coverage: Nothing(
            "its bodies were cut; src/demo/realtime_server/payload/tests.rs has the limit",
        ),
    },
    Scenario {
        name: "07d_tx_40000_rows",
        seen: "40,000 rows arrive after 16 s (changes were not recorded)",
        as_one: false,
        told: &[("", "live")],
        coverage: Nothing("its frames were not recorded"),
    },
    Scenario {
        name: "07e_tx_120000_rows",
        seen: "120,000 rows are lost without a sign: only the echo check finds that",
        as_one: false,
        told: &[("", "live")],
        coverage: Nothing("the loss is a fault of the real server; `faults()` has it"),
    },
    Scenario {
        name: "08a_max_events_per_second",
        seen: "events over the limit are dropped without a sign: only the echo check finds that",
        as_one: false,
        told: &[("", "live")],
        coverage: Nothing("there is no rate limit; `faults()` drops events"),
    },
    Scenario {
        name: "08b_max_joins_per_second",
        seen: "a join too many is refused after 5 s, and the socket closed with 1001",
        as_one: false,
        told: &[
            ("26 channels", "down (channel)"),
            ("24 channels", "down (network, new socket)"),
            ("j25", "down (quota), down (network, new socket)"),
        ],
        coverage: Nothing("joins are not limited"),
    },
    Scenario {
        name: "08c_max_channels_and_users",
        seen: "a channel too many is refused by the join, a client too many with 429",
        as_one: false,
        told: &[
            ("A c0, A c1, A c2, B b", "down (channel)"),
            ("A c3, C", "down (quota)"),
            ("A c4", "never live"),
        ],
        coverage: All,
    },
    Scenario {
        name: "09_server_kill9_restart",
        seen: "the socket breaks, connects fail, the second server confirms a new subscription",
        as_one: true,
        told: &[(
            "A",
            "live, 1 changed (1 ids), down (network, new socket), down (network), down (network), live, 1 changed (1 ids)",
        )],
        coverage: All,
    },
    Scenario {
        name: "09b_server_sigterm",
        seen: "the socket is closed with 1012",
        as_one: false,
        told: &[("A", "live, down (network, new socket)")],
        coverage: All,
    },
    Scenario {
        name: "10a_pg_immediate_restart",
        seen: "5 of 22 rows are lost without a sign",
        as_one: false,
        told: &[("A", "live, 18 changed (18 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "10b_slot_backend_terminated",
        seen: "1 of 18 rows is lost without a sign",
        as_one: false,
        told: &[("A", "live, 18 changed (18 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "10c_all_tenant_backends_terminated",
        seen: "2 of 19 rows are lost without a sign",
        as_one: false,
        told: &[("A", "live, 18 changed (18 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "10d_pg_down_45s",
        seen: "17 rows are lost without a sign",
        as_one: false,
        told: &[("A", "live, 18 changed (18 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "10e_no_free_replication_slot_60s",
        seen: "the channel is dead without a sign until the client joins again",
        as_one: false,
        told: &[("A", "live, down (asked), live, 17 changed (17 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "10f_pg_down_150s",
        seen: "the channel is dead without a sign until the client joins again",
        as_one: false,
        told: &[("A", "live, down (asked), live, 17 changed (17 ids)")],
        coverage: Nothing(
            "a fault of Postgres; tests/realtime_server.rs cuts the connection, tests/contract/realtime_outage.rs the rest",
        ),
    },
    Scenario {
        name: "11_duplicates_leave_garbage",
        seen: "a second join closes the first only; garbage is ignored; a malformed join is refused",
        as_one: false,
        told: &[
            ("9 channels", "down (channel)"),
            (
                "j:access_token number mj, j:broadcast wrong type mj",
                "live",
            ),
            (
                "dup",
                "live, down (asked), live, 11 changed (11 ids), down (channel)",
            ),
        ],
        coverage: AllBut(&[(
            "j:payload {}",
            "bindings in the topic's name are not supported",
        )]),
    },
    Scenario {
        name: "12_slow_reader",
        seen: "a reader that stops is dropped after 30 s (the server's frames were not recorded)",
        as_one: false,
        told: &[("fast big, slow big2", "down (channel)")],
        coverage: Nothing(
            "its frames were not recorded; tests/realtime_server.rs drops a slow reader",
        ),
    },
    Scenario {
        name: "13_private_broadcast_from_db",
        seen: "a client with the right joins a private topic, receives what the database sends, and again on request",
        as_one: false,
        told: &[
            ("auth_nopolicy vd:1", "down (topic)"),
            ("public vd:1", "down (channel)"),
            (
                "auth_policy vd:1, auth_policy_v2 vd:1, svc vd:1",
                "live, 67 broadcasts not ours (0 again)",
            ),
            ("replay vd:1", "live, 67 broadcasts not ours (7 again)"),
            ("repl_ready vd:1", "live, 60 broadcasts not ours (0 again)"),
        ],
        coverage: All,
    },
    Scenario {
        name: "13x_private_broadcast_while_replication_recovering",
        seen: "40 s after an outage nothing comes live until the server reads again; what is replayed is complete",
        as_one: false,
        told: &[
            ("auth_nopolicy vd:1", "down (topic)"),
            ("public vd:1", "down (channel)"),
            (
                "auth_policy vd:1, auth_policy_v2 vd:1, repl_ready vd:1, svc vd:1",
                "live, 60 broadcasts not ours (0 again)",
            ),
            ("replay vd:1", "live, 67 broadcasts not ours (7 again)"),
        ],
        coverage: Nothing(
            "the live path was away, a fault of the real server; `faults()` withholds broadcasts",
        ),
    },
    Scenario {
        name: "13y_private_broadcast_while_recovering_after_150s",
        seen: "so after an outage of 150 s; the policy was there before",
        as_one: false,
        told: &[
            ("public vd:1", "down (channel)"),
            ("5 channels", "live, 60 broadcasts not ours (0 again)"),
            ("replay vd:1", "live, 67 broadcasts not ours (7 again)"),
        ],
        coverage: Nothing(
            "the live path was away, a fault of the real server; `faults()` withholds broadcasts",
        ),
    },
    Scenario {
        name: "14_publication_changes_in_session",
        seen: "a table out of the publication for a minute ends the subscription, with an error",
        as_one: false,
        told: &[("", "live, 2 changed (2 ids), down (table)")],
        coverage: All,
    },
    Scenario {
        name: "15_transport_edge_cases",
        seen: "paths, large and fragmented frames, two topics on one socket",
        as_one: false,
        told: &[
            ("http", "down (network)"),
            ("path", "down (project), down (project)"),
            ("keepalive_sub k", "live"),
            ("5 channels", "live, 1 changed (1 ids)"),
            ("multi a", "live, 3 changed (1 ids)"),
        ],
        coverage: AllBut(&[
            ("multi", NO_FILTERS),
            ("path", "the path behind the gateway is served, too"),
            ("http", "it asked for no socket"),
            ("deflate", "its request was not recorded"),
            (
                "huge",
                "its frame was not recorded; tests/realtime_server.rs sends one",
            ),
            ("frag", "its fragments were not recorded"),
            ("late0", "what was committed before a join is not told here"),
            ("late1", "as late0"),
            ("late2", "as late0"),
            ("late3", "as late0"),
        ]),
    },
    Scenario {
        name: "20_js_basic",
        seen: "the official client, version 2.0.0",
        as_one: false,
        told: &[("js1", "live, 3 changed (1 ids), down (channel)")],
        coverage: All,
    },
    Scenario {
        name: "20b_js_vsn1",
        seen: "the official client, version 1.0.0",
        as_one: false,
        told: &[("js1", "live, 2 changed (1 ids)")],
        coverage: All,
    },
    Scenario {
        name: "21_js_setAuth_and_expiry",
        seen: "the official client's token ends, and it does not come back by itself",
        as_one: false,
        told: &[(
            "js1",
            "live, live, 1 changed (1 ids), down (expired, new socket)",
        )],
        coverage: All,
    },
    Scenario {
        name: "22_js_bad_apikey",
        seen: "the official client is refused four times",
        as_one: true,
        told: &[("js1", "down (key), down (key), down (key), down (key)")],
        coverage: All,
    },
    Scenario {
        name: "23_js_server_kill9",
        seen: "the official client comes back after the server",
        as_one: true,
        told: &[(
            "js1",
            "live, 1 changed (1 ids), down (network, new socket), down (network), down (network), down (network), live, 1 changed (1 ids)",
        )],
        coverage: All,
    },
    Scenario {
        name: "24_js_table_not_published",
        seen: "the official client says SUBSCRIBED, and is not",
        as_one: false,
        told: &[("js1 np", "down (table)")],
        coverage: All,
    },
];
