//! The output of bindgen.
#![expect(unsafe_code, reason = "declarations of a C library")]
#![expect(missing_docs, reason = "DPDK documents them: https://doc.dpdk.org/api/")]
#![expect(non_camel_case_types, reason = "names are those of C")]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
