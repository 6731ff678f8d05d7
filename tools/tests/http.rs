//! The API itself: its description, and what it refuses before the control plane hears of it.

mod common;

use std::collections::BTreeSet;

use bytes::Bytes;
use common::Served;
use ferro_protocol::api::{
    ApiError, Document, DocumentList, ErrorClass, ErrorCode, PutDocument, TRANSFER_BYTES_MAX, Transfer,
};
use ferro_tools::failure::{Exit, Failure};
use hyper::Method;
use serde_json::{Value, json};

/// All strings under this key, at any depth.
fn collect(value: &Value, key: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if let (true, Some(text)) = (name == key, inner.as_str()) {
                    found.insert(text.to_owned());
                }
                collect(inner, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
        _ => {}
    }
}

#[test]
fn the_description_has_every_route_and_no_other() {
    let served = Served::start();
    let client = served.client();
    let document: Value = served.runtime.block_on(client.get("/openapi.json")).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
        })
        .collect();
    let served_routes: BTreeSet<(String, String)> =
        // What takes the rest of a path is a plain parameter there.
        vsand::api::ROUTES.iter().map(|(method, path)| ((*method).to_owned(), path.replace("{*", "{"))).collect();
    assert_eq!(described, served_routes);
    let mut references = BTreeSet::new();
    collect(&document, "$ref", &mut references);
    assert!(references.len() > 20, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    assert!(document.pointer("/components/schemas/ErrorCode").is_some());
}

#[test]
fn what_can_be_refused_without_looking_is() {
    let served = Served::start();
    served.done(&["volume", "create", "web", "--size", "8M", "--policy", "mirror:1"]);
    let client = served.client();
    let refused = |method: Method, path: String, body: Option<Bytes>| -> Failure {
        let kind = if method == Method::PUT { "application/octet-stream" } else { "application/json" };
        served.runtime.block_on(client.bytes(method, &path, body.map(|body| (body, kind)))).unwrap_err()
    };
    let post =
        |path: &str, body: Value| refused(Method::POST, path.to_owned(), Some(Bytes::from(body.to_string())));
    let policy = json!({"method": "mirror", "copies": 2});
    for (path, body, code) in [
        ("/v1/volumes", json!({"name": "a"}), "bad_request"),
        (
            "/v1/volumes",
            json!({"name": "a", "size_bytes": 4096, "policy": policy, "colour": 1}),
            "bad_request",
        ),
        ("/v1/volumes", json!({"name": "..", "size_bytes": 4096, "policy": policy}), "bad_name"),
        ("/v1/volumes", json!({"name": "a", "size_bytes": 0, "policy": policy}), "bad_size"),
        ("/v1/volumes", json!({"name": "a", "size_bytes": -1, "policy": policy}), "bad_request"),
        ("/v1/volumes", json!({"name": "a", "size_bytes": 4097, "policy": policy}), "bad_size"),
        (
            "/v1/volumes",
            json!({"name": "a", "size_bytes": 4096, "policy": {"method": "mirror"}}),
            "bad_policy",
        ),
        (
            "/v1/volumes",
            json!({"name": "a", "size_bytes": 4096, "policy": {"method": "raid6"}}),
            "policy_unsatisfiable",
        ),
        ("/v1/volumes/web/resize", json!({"size_bytes": 1}), "bad_size"),
        ("/v1/disks", json!({"path": "relative"}), "bad_path"),
        ("/v1/disks", json!({"path": "/"}), "bad_path"),
        ("/v1/disks", json!({"path": "/d", "size_bytes": 0}), "bad_size"),
        ("/v1/cluster/tokens", json!({"valid_seconds": 0}), "bad_request"),
        ("/v1/cluster/join", json!({"token": "x".repeat(100_000)}), "bad_request"),
        ("/v1/locks/zzz/break", json!(null), "bad_request"),
        ("/v1/nothing", json!(null), "no_such_route"),
    ] {
        let failure = post(path, body);
        assert_eq!(failure.code, code, "{path}: {failure:?}");
        assert!(!failure.next_step.is_empty());
    }
    assert_eq!(refused(Method::PUT, "/v1/volumes".to_owned(), None).code, "no_such_route");
    assert_eq!(
        refused(Method::POST, "/v1/volumes".to_owned(), Some(Bytes::from_static(b"{"))).exit,
        Exit::Usage
    );
    assert_eq!(served.control.state().volumes.len(), 1);
}

#[test]
fn transfers_take_whole_blocks_within_bounds() {
    let served = Served::start();
    served.done(&["volume", "create", "web", "--size", "8M", "--policy", "mirror:1"]);
    let client = served.client();
    let begin = json!({"direction": "import"});
    let transfer: Transfer =
        served.runtime.block_on(client.post("/v1/volumes/web/transfers", &begin)).unwrap();
    let data = format!("/v1/volumes/web/transfers/{}/data", transfer.id);
    let put = |query: &str, length: u64| {
        let body = Some((Bytes::from(vec![7; length as usize]), "application/octet-stream"));
        served.runtime.block_on(client.bytes(Method::PUT, &format!("{data}?{query}"), body))
    };
    for (query, length) in [
        ("offset=1", 4096),
        ("offset=0", 100),
        ("offset=0", 0),
        ("offset=0", TRANSFER_BYTES_MAX + 4096),
        ("", 4096),
        ("offset=18446744073709547520", 4096),
    ] {
        assert_eq!(put(query, length).unwrap_err().code, "bad_request", "{query} {length}");
    }
    put("offset=4096", 8192).unwrap();
    let get =
        |query: &str| served.runtime.block_on(client.bytes(Method::GET, &format!("{data}?{query}"), None));
    assert_eq!(get("offset=0&length=8192").unwrap().unwrap()[4095..4097], [0, 7]);
    assert_eq!(get("offset=65536&length=4194304"), Ok(None), "zeros have no body");
    for query in ["offset=0&length=0", "offset=0&length=8388608", "offset=0", "offset=0&length=4096&x=1"] {
        assert_eq!(get(query).unwrap_err().code, "bad_request", "{query}");
    }
    let strange = format!("/v1/volumes/web/transfers/{}/data?offset=0&length=4096", "0".repeat(32));
    let failure = served.runtime.block_on(client.bytes(Method::GET, &strange, None)).unwrap_err();
    assert_eq!((failure.code.as_str(), failure.exit), ("transfer_not_found", Exit::NotFound));
}

#[test]
fn documents_are_put_read_watched_and_deleted() {
    let served = Served::start();
    let client = served.client();
    let put = |name: &str, basis: &str, content: Vec<u8>| {
        let body = Some((Bytes::from(content), "text/plain"));
        let path = format!("/v1/documents/{name}?{basis}");
        served.runtime.block_on(client.bytes(Method::PUT, &path, body))
    };
    for (name, basis, content, code) in [
        ("a/../b", "basis=0", vec![], "bad_name"),
        ("a//b", "basis=0", vec![], "bad_name"),
        ("a", "", vec![], "bad_request"),
        ("a", "basis=0", vec![0xff], "bad_request"),
        ("a", "basis=0", vec![b'x'; (1 << 20) + 1], "bad_request"),
        ("a", "basis=3", vec![], "conflict"),
    ] {
        assert_eq!(put(name, basis, content).unwrap_err().code, code, "{name} {basis}");
    }
    // Larger than any JSON request may be.
    let made = put("switch/network", "basis=0", vec![b'x'; 1 << 20]).unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<PutDocument>(&made).unwrap().revision, 1);
    let document: Document = served.runtime.block_on(client.get("/v1/documents/switch%2Fnetwork")).unwrap();
    assert_eq!((document.name.as_str(), document.content.len()), ("switch/network", 1 << 20));
    for bad in ["wait_s=61", "after=x", "prefx=a"] {
        let failed = served.runtime.block_on(client.get::<DocumentList>(&format!("/v1/documents?{bad}")));
        assert_eq!(failed.unwrap_err().code, "bad_request", "{bad}");
    }
    let watcher = served.runtime.spawn({
        let client = served.client();
        async move { client.get::<DocumentList>("/v1/documents?prefix=switch/&after=1&wait_s=60").await }
    });
    let gone = client.empty(Method::DELETE, "/v1/documents/switch/network?basis=1", None::<&()>);
    served.runtime.block_on(gone).unwrap();
    let seen = served.runtime.block_on(watcher).unwrap().unwrap();
    assert_eq!(seen, DocumentList { revision: 2, documents: Vec::new() });
    let gone = served.runtime.block_on(client.get::<Document>("/v1/documents/switch/network"));
    assert_eq!(gone.unwrap_err().code, "document_not_found");
}

#[test]
fn codes_are_stable_words_and_unknown_ones_are_taken() {
    assert_eq!(serde_json::to_value(ErrorCode::ObjectInUse).unwrap(), "object_in_use");
    let later: ApiError =
        serde_json::from_value(json!({"code": "code_of_the_future", "message": "m", "next_step": "n"}))
            .unwrap();
    assert_eq!(later.code, ErrorCode::Unknown);
    assert_eq!((later.code.class(), later.code.http_status()), (ErrorClass::Failure, 500));
    assert_eq!(ErrorCode::NoQuorum.http_status(), 503);
}
