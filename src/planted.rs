//! Defects for the fault suite's checker to find: each breaks one guarantee, at the place that keeps it.
//!
//! Test-only. Without the cargo feature `planted-defects`, which no default turns on and no release may, [`has`] is a
//! constant `false` and the defects are not compiled. One feature holds them all and the program is told at its start which
//! one to have, because a build takes a minute and a run of the checker takes seconds.

/// What can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// G1: commits are acknowledged before they are on disk.
    AcknowledgeEarly,
    /// G2: of some events the fan-out is lost.
    LoseFanOut,
    /// G3: idempotency keys are not kept.
    ForgetKeys,
    /// G4: a PRE event that a listener refused is committed.
    OpenGate,
    /// G5: some attempts are recorded as successes and never made.
    SkipAttempts,
    /// G5: some attempts are made twice.
    AttemptTwice,
    /// G6: a replica that lost a tenant writes what it has, over what the new owner wrote.
    IgnoreFence,
    /// G7: commit times do not follow positions.
    MisdateCommits,
    /// G7: ordering keys are not heeded.
    IgnoreOrder,
    /// G8: a watch that resumes begins one event too far on.
    ResumeLate,
}

impl Defect {
    /// Each with the guarantee that it breaks and its name.
    pub const ALL: [(Self, &str, &str); 10] = [
        (Self::AcknowledgeEarly, "G1", "acknowledge-early"),
        (Self::LoseFanOut, "G2", "lose-fan-out"),
        (Self::ForgetKeys, "G3", "forget-keys"),
        (Self::OpenGate, "G4", "open-gate"),
        (Self::SkipAttempts, "G5", "skip-attempts"),
        (Self::AttemptTwice, "G5", "attempt-twice"),
        (Self::IgnoreFence, "G6", "ignore-fence"),
        (Self::MisdateCommits, "G7", "misdate-commits"),
        (Self::IgnoreOrder, "G7", "ignore-order"),
        (Self::ResumeLate, "G8", "resume-late"),
    ];
}

/// Whether this process has a defect.
#[cfg(not(feature = "planted-defects"))]
#[inline]
pub const fn has(_defect: Defect) -> bool {
    false
}

#[cfg(feature = "planted-defects")]
static CHOSEN: std::sync::OnceLock<Option<Defect>> = std::sync::OnceLock::new();

/// Whether this process has a defect.
#[cfg(feature = "planted-defects")]
pub fn has(defect: Defect) -> bool {
    CHOSEN.get().copied().flatten() == Some(defect)
}

/// Chooses the defect of this process, once. False where the name is not known.
#[cfg(feature = "planted-defects")]
pub fn choose(name: &str) -> bool {
    let found = Defect::ALL.into_iter().find(|(_, _, known)| *known == name).map(|(defect, _, _)| defect);
    found.is_some() && CHOSEN.set(found).is_ok()
}
