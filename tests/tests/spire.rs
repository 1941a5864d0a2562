//! The clients of `spire-adapter` against real SPIRE and against the embedded authority, held to the same.
//!
//! Each test stands for something that SPIRE was seen to do, most of it not what one would expect.

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
    faults::a_burst_of_opens_leaves_the_agent_well,
    faults::a_killed_agent_withdraws_nothing_and_is_found_again,
    faults::a_stopped_agent_is_noticed_and_its_svids_expire,
    faults::an_idle_stream_is_not_cut,
    faults::expired_svids_of_a_live_agent_are_never_usable,
    faults::streams_outlive_their_socket_file,
    issue::an_agent_gives_only_what_its_own_node_hosts,
    issue::an_identity_recreated_at_once_is_hardly_missing,
    issue::entries_come_and_go_on_one_stream,
    issue::entries_updated_in_place_leave_no_gap,
    issue::svids_are_chosen_by_spiffe_id_whatever_their_order,
    issue::svids_come_by_both_apis,
    operator::entries_follow_the_cluster_state_and_nothing_else,
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
    operator::a_confined_operator_registers_by_tcp,
    broker::a_process_has_its_svid_until_it_ends,
    broker::rotation_of_the_own_svid_makes_a_new_connection,
    broker::who_is_no_broker_is_told_so,
    trust::a_federated_server_is_followed_and_dropped,
}
