//! `POST /v1/verify`: hashing and repairing, told line by line.

use std::sync::Arc;

use http::Response;

use super::answer::{self, Body, Outbox};
use super::api::Api;
use crate::cache::VerifyEvent;
use crate::cache::named::Name;

/// Answers at once, and goes on for as long as somebody listens.
pub fn answer(api: &Arc<Api>, name: Option<Name>, repair: bool) -> Response<Body> {
    let (lines, response) = answer::lines();
    let cache = Arc::clone(&api.cache);
    tokio::spawn(async move {
        let verified = async {
            let mut outbox = Outbox::new(lines.clone());
            let mut tell = |event: VerifyEvent| {
                let is_progress = matches!(event, VerifyEvent::Hashing { .. } | VerifyEvent::Progress(_));
                outbox.say(&event, !is_progress);
            };
            let verified = cache.verify(name, repair, &mut tell).await;
            outbox.flush().await;
            if let Err(failure) = verified {
                lines.send(&VerifyEvent::from(&failure)).await;
            }
        };
        tokio::select! {
            () = lines.reader_gone() => {}
            () = verified => {}
        }
    });
    response
}
