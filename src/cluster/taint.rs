//! The taint with which a node may start, so that no pod comes before larder does. Pure.

use k8s_openapi::api::core::v1::Taint;
use serde_json::{Value, json};

/// Its key. Whoever makes nodes puts it on them, with any effect; larder only takes it away.
pub const KEY: &str = "larder.dev/not-ready";

/// The JSON patch that takes it away: each step first tests that what it removes is ours, so that a
/// list that has changed meanwhile refuses it. `None` where there is nothing to take away.
#[must_use]
pub fn removal(taints: &[Taint]) -> Option<Value> {
    // From the end on: what is removed moves those behind it.
    let ours = taints.iter().enumerate().rev().filter(|(_, taint)| taint.key == KEY);
    let steps: Vec<Value> = ours
        .flat_map(|(at, _)| {
            let path = format!("/spec/taints/{at}");
            [json!({"op": "test", "path": format!("{path}/key"), "value": KEY}), json!({"op": "remove", "path": path})]
        })
        .collect();
    (!steps.is_empty()).then_some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
    }

    #[test]
    fn nothing_of_others_is_taken_away() {
        assert_eq!(removal(&[]), None);
        assert_eq!(removal(&[taint("nvidia.com/gpu", "NoSchedule"), taint("larder.dev/other", "NoSchedule")]), None);
    }

    #[test]
    fn it_is_taken_away_with_every_effect_and_tested_for() {
        let taints = [taint(KEY, "NoSchedule"), taint("nvidia.com/gpu", "NoSchedule"), taint(KEY, "NoExecute")];
        let expected = json!([
            {"op": "test", "path": "/spec/taints/2/key", "value": KEY},
            {"op": "remove", "path": "/spec/taints/2"},
            {"op": "test", "path": "/spec/taints/0/key", "value": KEY},
            {"op": "remove", "path": "/spec/taints/0"},
        ]);
        assert_eq!(removal(&taints), Some(expected));
    }
}
