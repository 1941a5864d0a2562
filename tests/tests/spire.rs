//! The clients of `spire-adapter` against real SPIRE and against the embedded authority, held to the same.
//!
//! Each test stands for something that SPIRE was seen to do, most of it not what one would expect. What a client
//! must not get wrong, and who proves that ours does not (`traps` is `spire-adapter/src/traps.rs`, where a stand-in
//! says what it is told to):
//!
//! | SPIRE's agent | proven by |
//! |---|---|
//! | hands out expired SVIDs while its server is away, on old and new streams | `faults::expired_svids_of_a_live_agent_are_never_usable`, `traps::an_expired_svid_handed_out_is_never_usable` |
//! | stopped, leaves its connections standing and says nothing | `faults::a_stopped_agent_is_noticed_and_its_svids_expire`; as an alarm of the daemon: `spire_nodes` |
//! | shows gaps that are no withdrawals: on a new stream, on re-creation, on re-signing | `issue::entries_come_and_go_on_one_stream`, `issue::an_identity_recreated_at_once_is_hardly_missing`, `issue::a_node_recreated_at_once_is_soon_back` (where the gap is a refusal), `trust::a_new_authority_cuts_nothing`, `traps::a_gap_shows_at_once_and_closes_with_the_next_message`; none where an entry is changed in place: `issue::entries_updated_in_place_leave_no_gap` |
//! | never looks again at who may ask by its Broker API | `broker::rotation_of_the_own_svid_makes_a_new_connection` |
//! | never notices that a process has ended | `broker::a_process_has_its_svid_until_it_ends`, `broker::a_process_has_its_svid_by_the_delegated_identity_api_too` |
//! | wedges for good under a burst of calls | `faults::a_burst_of_opens_leaves_the_agent_well`, `traps::opening::few_streams_are_being_opened_at_a_time`, `traps::opening::a_slow_agent_is_asked_for_less_until_it_answers`; told as an alarm of its own: `traps::opening::an_agent_that_never_answers_is_told_apart` |
//! | with its server's keys in memory alone, exits when that restarts | `a_server_that_has_lost_its_keys_takes_its_agents_with_it`; all others have a server with keys on disk |
//! | keeps a defederated trust domain on the bundle stream | `trust::a_defederated_domain_is_not_trusted`, `traps::a_defederated_domain_on_the_bundle_stream_is_not_usable` |
//! | orders SVIDs by entry ID | `issue::svids_are_chosen_by_spiffe_id_whatever_their_order`, `traps::svids_are_chosen_by_spiffe_id_whatever_their_order` |
//! | repeats itself | `traps::identical_messages_notify_nobody` |
//! | does not notice that its socket was unlinked | `faults::streams_outlive_their_socket_file` |
//! | cuts a connection that pings it | `faults::an_idle_stream_is_not_cut` |
//! | sends messages of any size | `trust::a_message_of_five_megabytes_is_taken` |
//!
//! | SPIRE's server | proven by |
//! |---|---|
//! | does half a batch and says nothing, or refuses some of it | `registration::a_thousand_entries_are_made_kept_and_mended`, `registration::what_the_server_refuses_is_told_and_what_others_have_made_is_left`, and any sequence of such: `spire-adapter/src/registration/tests.rs` |
//! | writes for whoever is an administrator, and for two at once | `operator::two_operators_do_no_harm` |
//! | lets an administrator do anything | `authorization::the_operator_does_its_work_and_no_more` |

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

#[path = "spire/authorization.rs"]
mod authorization;
#[path = "spire/broker.rs"]
mod broker;
#[path = "spire/faults.rs"]
mod faults;
#[path = "spire/issue.rs"]
mod issue;
#[path = "spire/operator.rs"]
mod operator;
#[path = "spire/peers.rs"]
mod peers;
#[path = "spire/recorder.rs"]
mod recorder;
#[path = "spire/registration.rs"]
mod registration;
#[path = "spire/trust.rs"]
mod trust;
#[path = "spire/under_test.rs"]
mod under_test;

/// Makes two tests of each scenario.
macro_rules! on_both {
    ($($scenario:ident::$name:ident,)*) => {
        mod embedded {
            use super::under_test::Kind;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$scenario::$name(Kind::Embedded).await;
                }
            )*
        }
        mod real {
            use super::under_test::Kind;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    if authd_tests::skip::spire_available(concat!("real::", stringify!($name))) {
                        super::$scenario::$name(Kind::Real).await;
                    }
                }
            )*
        }
    };
}

on_both! {
    broker::a_federated_domain_comes_and_goes_by_the_broker_api,
    broker::a_killed_agent_withdraws_nothing_by_the_broker_api,
    broker::a_process_has_its_svid_by_the_delegated_identity_api_too,
    broker::a_process_has_its_svid_until_it_ends,
    broker::rotation_of_the_own_svid_makes_a_new_connection,
    broker::who_is_no_broker_is_told_so,
    faults::a_burst_of_opens_leaves_the_agent_well,
    faults::a_killed_agent_withdraws_nothing_and_is_found_again,
    faults::a_stopped_agent_is_noticed_and_its_svids_expire,
    faults::an_idle_stream_is_not_cut,
    faults::expired_svids_of_a_live_agent_are_never_usable,
    faults::streams_outlive_their_socket_file,
    issue::a_node_recreated_at_once_is_soon_back,
    issue::an_agent_gives_only_what_its_own_node_hosts,
    issue::an_identity_recreated_at_once_is_hardly_missing,
    issue::entries_come_and_go_on_one_stream,
    issue::entries_updated_in_place_leave_no_gap,
    issue::svids_are_chosen_by_spiffe_id_whatever_their_order,
    issue::svids_come_by_both_apis,
    operator::entries_follow_the_cluster_state_and_nothing_else,
    operator::two_operators_do_no_harm,
    operator::what_is_wrong_is_told,
    registration::a_thousand_entries_are_made_kept_and_mended,
    registration::every_field_of_an_entry_is_mended,
    registration::the_server_says_which_agents_it_has_attested,
    registration::unwanted_entries_go_after_their_grace_and_a_server_away_loses_nothing,
    registration::what_the_server_refuses_is_told_and_what_others_have_made_is_left,
    trust::a_defederated_domain_is_not_trusted,
    trust::a_message_of_five_megabytes_is_taken,
    trust::a_new_authority_cuts_nothing,
    trust::rotation_under_load_fails_no_handshake,
}

/// Makes a test of a scenario that the embedded authority cannot play.
macro_rules! on_real_spire {
    ($($scenario:ident::$name:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if authd_tests::skip::spire_available(stringify!($name)) {
                $scenario::$name().await;
            }
        }
    )*};
}

on_real_spire! {
    authorization::the_operator_does_its_work_and_no_more,
    faults::a_server_that_has_lost_its_keys_takes_its_agents_with_it,
    operator::a_confined_operator_registers_by_tcp,
    trust::a_federated_server_is_followed_and_dropped,
}
