//! Reading available updates.

use patch_types::{
    PackageName,
    api::{Patch, PatchSet, PatchState},
};
use serde_json::{Value, value::RawValue};

use super::Context;
use crate::{args::PatchesArgs, exit::Exit, render::patches};

pub(super) async fn list(context: &Context, args: &PatchesArgs) -> anyhow::Result<Exit> {
    let mut answer = context.client.patches().await?;
    if args.security {
        answer.raw = security_only(&answer.raw)?;
        answer.data = serde_json::from_str(answer.raw.get())?;
    }
    context.out.answer(&answer.raw, |style| patches::set(style, &answer, context.out.verbose))?;
    Ok(if args.check { check(&answer) } else { Exit::Done })
}

pub(super) async fn why_not(context: &Context, name: &PackageName) -> anyhow::Result<Exit> {
    let answer = context.client.why_not(name).await?;
    context.out.answer(&answer.raw, |_| patches::why_not(&answer))?;
    Ok(Exit::Done)
}

/// The same answer with the other updates left out; whatever else it holds stays.
fn security_only(raw: &RawValue) -> serde_json::Result<Box<RawValue>> {
    let mut value: Value = serde_json::from_str(raw.get())?;
    if let Some(Value::Array(patches)) = value.get_mut("patches") {
        patches.retain(|patch| patch.get("security") == Some(&Value::Bool(true)));
        let (total, reboot) = (patches.len(), patches.iter().any(asks_for_reboot));
        if let Value::Object(answer) = &mut value {
            answer.insert("total".to_owned(), total.into());
            answer.insert("requires_reboot".to_owned(), reboot.into());
        }
    }
    serde_json::value::to_raw_value(&value)
}

fn asks_for_reboot(patch: &Value) -> bool {
    serde_json::from_value::<Patch>(patch.clone())
        .is_ok_and(|patch| patch.requires_reboot && patch.state == PatchState::Ready)
}

/// What is held, kept back or taken back is no reason to run `apply`, which would not touch it.
fn check(set: &PatchSet) -> Exit {
    if set.patches.iter().any(|patch| patch.state == PatchState::Ready) {
        Exit::UpdatesAvailable
    } else if set.last_update_check.is_none() {
        Exit::Untold
    } else {
        Exit::Done
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(name: &str, security: bool, state: &str) -> Value {
        json!({
            "name": name, "architecture": "all", "current_version": "1", "available_version": "2", "origin": null,
            "security": security, "severity": "unknown", "cve_ids": [], "advisories": [], "description": "",
            "state": state, "reason": null, "requires_reboot": security, "download_size": 0, "later": 1,
        })
    }

    fn raw(patches: &[Value], fetched: Option<&str>) -> Box<RawValue> {
        let set = json!({"patches": patches, "total": patches.len(), "security_updates": 1,
            "requires_reboot": true, "last_update_check": fetched});
        serde_json::value::to_raw_value(&set).unwrap()
    }

    #[test]
    fn security_only_leaves_the_others_out_and_unknown_fields_in() {
        let patches = [patch("aa", true, "held"), patch("bb", false, "ready")];
        let only = security_only(&raw(&patches, Some("2026-11-22T00:00:00Z"))).unwrap();
        let set: PatchSet = serde_json::from_str(only.get()).unwrap();
        assert_eq!((set.total, set.patches.len(), set.requires_reboot), (1, 1, false));
        assert!(only.get().contains("\"later\":1"));
        assert_eq!(check(&set), Exit::Done);
    }

    #[test]
    fn the_check_counts_what_would_be_applied() {
        let of = |patches: &[Value], fetched| {
            let set: PatchSet = serde_json::from_str(raw(patches, fetched).get()).unwrap();
            check(&set)
        };
        let at = Some("2026-11-22T00:00:00Z");
        assert_eq!(of(&[patch("aa", true, "ready")], at), Exit::UpdatesAvailable);
        assert_eq!(of(&[patch("aa", true, "taken_back")], at), Exit::Done);
        // Without lists no updates are known, which is not that there are none.
        assert_eq!(of(&[], at), Exit::Done);
        assert_eq!(of(&[], None), Exit::Untold);
    }
}
