//! The bill of materials, in the JSON of CycloneDX 1.5.
//!
//! It is made here and not by cargo-cyclonedx, which knows crates only: the C libraries that crates
//! bring are where most advisories are.

use serde_json::{Value, json};

use crate::package::crates::{Part, Parts};

/// The document. `commit` is what the program was built from.
pub fn document(parts: &Parts, commit: &str) -> Value {
    let program = format!("pkg:cargo/sessionizer@{}", parts.version);
    let dependencies = std::iter::once(json!({ "ref": program, "dependsOn": parts.uses }));
    let of_parts = parts.all().map(|part| json!({ "ref": part.purl, "dependsOn": part.uses }));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": program,
                "name": "sessionizer",
                "version": parts.version,
                "purl": program,
                "licenses": [{ "expression": "Apache-2.0" }],
                "properties": [{ "name": "sessionizer:commit", "value": commit }],
            },
        },
        "components": parts.all().map(component).collect::<Vec<_>>(),
        "dependencies": dependencies.chain(of_parts).collect::<Vec<_>>(),
    })
}

fn component(part: &Part) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "licenses": [{ "expression": part.license }],
    });
    if let Some(checksum) = &part.checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}
