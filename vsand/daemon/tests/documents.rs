//! Documents through the plane of a real host, alone in its cluster.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_protocol::api::{BootstrapRequest, ErrorCode};
use ferro_protocol::document::DocumentName;
use vsand::api::control::ControlPlane;
use vsand::config::Config;
use vsand::plane::Plane;

const LONG: Duration = Duration::from_secs(50);

async fn alone(dir: &std::path::Path) -> Arc<Plane> {
    // Nobody else takes it between the two: the tests' hosts are on an address of their own.
    let listen = TcpListener::bind("127.86.11.1:0").and_then(|socket| socket.local_addr()).unwrap();
    let file = dir.join("vsand.toml");
    let (state, run) = (dir.join("state"), dir.join("run"));
    for dir in [&state, &run] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let (state, run) = (state.display(), run.display());
    let text = format!("listen = \"{listen}\"\nstate_dir = \"{state}\"\nrun_dir = \"{run}\"\n");
    std::fs::write(&file, text).unwrap();
    Arc::new(Plane::new(Arc::new(Config::load(&file).unwrap())).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_kept_watched_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let plane = alone(dir.path()).await;
    let (network, other): (DocumentName, DocumentName) =
        ("switch/network".parse().unwrap(), "vm/1".parse().unwrap());
    let before = plane.documents("", None, Duration::ZERO).await.unwrap_err();
    assert_eq!(before.code, ErrorCode::NotInCluster);
    plane
        .bootstrap(BootstrapRequest { host_name: Some("one".to_owned()), fault_domain: None })
        .await
        .unwrap();

    let first = plane.put_document(&network, 0, "{}".to_owned()).await.unwrap().revision;
    let refused = plane.put_document(&network, 0, "x".to_owned()).await.unwrap_err();
    assert_eq!((refused.code, refused.details["revision"].clone()), (ErrorCode::Conflict, first.to_string()));
    assert!(refused.message.contains("switch/network"), "{refused}");

    // A watcher sleeps through lease renewals and wakes at a change, then at a deletion.
    for change in 0..2 {
        let at = plane.documents("switch/", None, Duration::ZERO).await.unwrap().revision;
        let watcher = tokio::spawn({
            let plane = Arc::clone(&plane);
            async move { plane.documents("switch/", Some(at), LONG).await }
        });
        let idle = plane.documents("switch/", Some(at), Duration::from_millis(300)).await.unwrap();
        assert_eq!(idle.revision, at);
        let started = Instant::now();
        if change == 0 {
            plane.put_document(&other, 0, "y".to_owned()).await.unwrap();
        } else {
            plane.delete_document(&network, first).await.unwrap();
        }
        let seen = watcher.await.unwrap().unwrap();
        assert!(seen.revision > at && started.elapsed() < LONG / 2);
        assert_eq!(seen.documents.len(), 1 - change, "only those of the prefix");
    }
    assert_eq!(plane.document(&other).await.unwrap().content, "y");
    for basis in [0, first] {
        let gone = plane.delete_document(&network, basis).await.unwrap_err();
        assert!(matches!(gone.code, ErrorCode::DocumentNotFound | ErrorCode::Conflict), "{gone}");
    }
    assert_eq!(plane.document(&network).await.unwrap_err().code, ErrorCode::DocumentNotFound);
    plane.stop().await;
}
