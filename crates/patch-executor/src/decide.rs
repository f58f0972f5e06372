//! What goes back and what is still to be done, after a run that did not do everything. Pure.

use std::collections::BTreeSet;

use patch_types::OnFailure;

/// How one of the plan's changes stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As planned.
    Done,
    /// As before, and no error was reported of it.
    Untouched,
    /// Neither, or an error was reported of it.
    Failed,
    /// It went back already.
    TakenBack,
}

/// What is to be done next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// These changes go back.
    pub(crate) back: BTreeSet<usize>,
    /// These are applied afterwards.
    pub(crate) rest: BTreeSet<usize>,
}

/// Decides. `groups` is a partition of the changes by dependency. `harm_elsewhere`: a package that is not in the plan
/// suffered, so nobody can say which group did it. `may_go_on`: whether what was not begun may still be. What is to be
/// kept ([`OnFailure::Keep`]) is only asked about when packages lack what they depend upon: then whole groups go back.
pub(crate) fn decide(
    on_failure: OnFailure,
    groups: &[Vec<usize>],
    standing: &[Standing],
    harm_elsewhere: bool,
    may_go_on: bool,
) -> Decision {
    let of = |index: &usize| standing.get(*index).copied().unwrap_or(Standing::Failed);
    // What looks untouched goes back with its group all the same: apt may have changed its marks and what is wanted of it.
    let touched = |index: &usize| of(index) != Standing::TakenBack;
    let everything =
        || Decision { back: (0..standing.len()).filter(touched).collect(), rest: BTreeSet::new() };
    // What was not begun is not begun for somebody who wants to look at what failed.
    let may_go_on = may_go_on && on_failure != OnFailure::Keep;
    match on_failure {
        OnFailure::All => everything(),
        OnFailure::Group if harm_elsewhere => everything(),
        OnFailure::Group | OnFailure::Keep => {
            let mut decision = Decision::default();
            for group in groups {
                let has = |wanted: Standing| group.iter().any(|index| of(index) == wanted);
                if has(Standing::Failed) || has(Standing::TakenBack) {
                    decision.back.extend(group.iter().filter(|index| touched(index)));
                } else if has(Standing::Untouched) {
                    if may_go_on {
                        decision.rest.extend(group.iter().filter(|index| of(index) == Standing::Untouched));
                    } else {
                        // All of a group or nothing of it.
                        decision.back.extend(group.iter().filter(|index| of(index) == Standing::Done));
                    }
                }
            }
            decision
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Standing::*, *};

    fn sets(back: &[usize], rest: &[usize]) -> Decision {
        Decision { back: back.iter().copied().collect(), rest: rest.iter().copied().collect() }
    }

    #[test]
    fn a_failed_group_goes_back_and_the_others_are_finished() {
        let groups = [vec![0, 1], vec![2], vec![3, 4]];
        let standing = [Done, Failed, Done, Done, Untouched];
        let decide = |how, elsewhere, on| decide(how, &groups, &standing, elsewhere, on);
        assert_eq!(decide(OnFailure::Group, false, true), sets(&[0, 1], &[4]));
        assert_eq!(decide(OnFailure::Group, false, false), sets(&[0, 1, 3], &[]));
        assert_eq!(decide(OnFailure::Group, true, true), sets(&[0, 1, 2, 3, 4], &[]));
        assert_eq!(decide(OnFailure::All, false, true), sets(&[0, 1, 2, 3, 4], &[]));
        assert_eq!(decide(OnFailure::Keep, true, true), sets(&[0, 1, 3], &[]));
    }

    fn any_standing() -> impl Strategy<Value = Standing> {
        prop::sample::select(vec![Done, Untouched, Failed, TakenBack])
    }

    proptest! {
        /// Whatever happened: once what is decided is done, each group is all new or all old.
        #[test]
        fn every_group_ends_whole(
            standing in prop::collection::vec(any_standing(), 1..20),
            cut in prop::collection::vec(any::<bool>(), 20),
            elsewhere: bool,
            on: bool,
        ) {
            let mut groups: Vec<Vec<usize>> = Vec::new();
            for (index, cut) in cut.iter().enumerate().take(standing.len()) {
                match groups.last_mut() {
                    Some(group) if !cut => group.push(index),
                    _ => groups.push(vec![index]),
                }
            }
            for how in [OnFailure::Group, OnFailure::All, OnFailure::Keep] {
                let decision = decide(how, &groups, &standing, elsewhere, on);
                prop_assert!(decision.back.is_disjoint(&decision.rest));
                for group in &groups {
                    let new: Vec<bool> = group.iter().map(|i| {
                        decision.rest.contains(i) || (standing[*i] == Done && !decision.back.contains(i))
                    }).collect();
                    prop_assert!(new.iter().all(|n| *n == new[0]), "{how:?} {group:?} {standing:?} {decision:?}");
                }
            }
        }
    }
}
