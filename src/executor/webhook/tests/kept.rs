//! Connections are kept for the next call, within their bound.

use super::{LONG, Receiver, call, delivery, executor, loopback, read_request};
use crate::domain::invocation::OutcomeClass;
use crate::executor::Config;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Barrier;
use tokio::time::Instant;

#[tokio::test]
async fn one_connection_serves_many_deliveries_and_one_encoding_all_of_them() {
    let receiver = Receiver::start(|mut stream| async move {
        while !read_request(&mut stream).await.is_empty() {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
        }
    })
    .await;
    let (executor, delivery, call) = (executor(&loopback()), delivery(), call(&receiver.uri()));
    for _ in 0..50 {
        let outcome = executor.execute(&call, &delivery, Instant::now() + LONG).await;
        assert_eq!((outcome.class, outcome.status_code), (OutcomeClass::Succeeded, 204));
    }
    assert_eq!(receiver.connections(), 1);
    assert_eq!(delivery.event.structured().as_ptr(), delivery.event.structured().as_ptr());
}

#[tokio::test]
async fn as_many_connections_are_kept_as_may_be_and_calls_count_for_none() {
    // Each call is answered once as many run as are to run together.
    async fn connections(kept: usize, calls: usize, together: usize) -> usize {
        let running = Arc::new(Barrier::new(together));
        let receiver = Receiver::start(move |mut stream| {
            let running = Arc::clone(&running);
            async move {
                while let request = read_request(&mut stream).await
                    && !request.is_empty()
                {
                    running.wait().await;
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
                    if String::from_utf8_lossy(&request).contains("connection: close") {
                        break;
                    }
                }
            }
        })
        .await;
        let executor = executor(&Config { connections_kept_max: kept, ..loopback() });
        let (delivery, call) = (delivery(), call(&receiver.uri()));
        for _ in 0..calls / together {
            let calls = (0..together).map(|_| executor.execute(&call, &delivery, Instant::now() + LONG));
            for outcome in futures::future::join_all(calls).await {
                assert_eq!(outcome.class, OutcomeClass::Succeeded);
            }
        }
        receiver.connections()
    }
    assert_eq!(connections(1, 5, 1).await, 1, "one is kept");
    assert_eq!(connections(0, 5, 1).await, 5, "none is kept");
    assert!(connections(3, 20, 4).await > 4, "more run than are kept");
}
