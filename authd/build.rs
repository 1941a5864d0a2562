//! Generates the gRPC interface from `proto/`, without protoc.

use std::error::Error;

/// Fields which hold an enum, by enum: serialised by name instead of number.
const ENUM_FIELDS: &[(&str, &[&str])] = &[
    ("Guard", &["RecordOverrideRequest.guard"]),
    ("Mode", &["GuardState.mode"]),
    ("Severity", &["Condition.severity"]),
    ("AuthType", &["AuthEntry.auth_type", "Flow.auth_type"]),
    ("Backend", &["Encryption.backend"]),
    ("Verdict", &["Flow.verdict"]),
    ("DropReason", &["Flow.reason"]),
    ("Hook", &["Flow.hook"]),
    ("Direction", &["Flow.direction"]),
    ("SvidState", &["Identity.svid", "Svid.state"]),
    ("AuthOutcome", &["AuthExplanation.outcome", "AuthPath.outcome"]),
    ("CheckState", &["AuthCheck.state"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut protos = protox::Compiler::new(["proto"])?;
    protos.include_imports(true).include_source_info(true);
    protos.open_file("authd/v1/authd.proto")?;

    let mut builder = tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "crate::api::Timestamp")
        .message_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"camelCase\")]")
        .type_attribute(
            ".authd.v1.ObserveResponse.item",
            "#[derive(serde::Serialize)] #[serde(rename_all = \"camelCase\")]",
        );
    for (name, fields) in ENUM_FIELDS {
        for field in *fields {
            builder = builder.field_attribute(
                format!(".authd.v1.{field}"),
                format!("#[serde(serialize_with = \"crate::api::word::serialize::<{name}, _>\")]"),
            );
        }
    }
    builder.compile_fds(protos.file_descriptor_set())?;
    Ok(())
}
