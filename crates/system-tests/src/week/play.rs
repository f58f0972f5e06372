//! The week itself: the clock goes from one thing that happens to the next, and what systemd's timers would start is started.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::plan::{Event, Plan, Special, WINDOW};
use super::{Clock, Options, Seen};
use crate::agent::Agent;
use crate::repository::{Feed, Kind};
use crate::wait;

const SINKS: &str = include_str!("sinks.py");

const UNIT: &str =
    "[Service]\nExecStart=/usr/bin/python3 /usr/lib/lp-sinks.py\n[Install]\nWantedBy=multi-user.target\n";

const CONFIG: &str = "policy: {mode: agent}\nsecurity: {rate_limit_requests_per_minute: RATE}\n\
    notifications:\n  \
      mail: {host: 127.0.0.1, port: 25, tls: none, from: host@example.org, to: [ops@example.org], report: on-change}\n  \
      webhooks: [{url: \"http://127.0.0.1:8025/\", report: always}]\n";

/// As Debian's update-notifier does it.
const ASKS_FOR_REBOOT: &str = "[ \"$1\" = configure ] || exit 0\necho '*** System restart required ***' >/run/reboot-required\n\
    echo \"$DPKG_MAINTSCRIPT_PACKAGE\" >>/run/reboot-required.pkgs";

const FAILS: &str =
    "[ \"$1\" != configure ] || { echo \"$DPKG_MAINTSCRIPT_PACKAGE: deliberate failure\" >&2; exit 3; }";

const CONFIGURED: &str = "/etc/linux_patch_api/config.yaml";

/// Any change of the configuration makes the agent look at the time, which it else does once a minute.
fn configuration(number: usize) -> String {
    CONFIG.replace("RATE", if number.is_multiple_of(2) { "3000" } else { "3001" })
}

const TIMERS: [&str; 3] = ["linux-patch-policy", "linux-patch-notify", "linux-patch-reboot-window"];

/// How long a run, a tick or a boot may take.
const LIMIT: Duration = Duration::from_secs(90);

/// What a host says of itself that does not go down.
const STAYS: [&str; 5] = ["initializing", "starting", "running", "degraded", "maintenance"];

/// How long a host may take to answer that goes down perhaps.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// What the host says after a step, in one go: packages, what asks for a reboot, and whether a tick failed.
const LOOK: &str = "dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\\n' 'lp-*'; echo --; \
    cat /run/reboot-required.pkgs 2>/dev/null || true; echo --; \
    systemctl --failed --no-legend --plain | cut -d' ' -f1";

/// A week, and its host.
pub(super) struct Week {
    pub(super) agent: Agent,
    feed: Feed,
    clock: Clock,
    events: VecDeque<(Timestamp, Event)>,
    ends: Timestamp,
    step: SignedDuration,
    limit: Duration,
    updates: Vec<super::plan::Update>,
    published: Vec<String>,
    is_off: bool,
    kills: bool,
    runs: usize,
    /// The agent's, as it says.
    next_run: Option<Timestamp>,
    /// What asks for a reboot.
    required: String,
}

impl Week {
    /// A host with the first versions of all packages, whose agent patches by itself.
    pub(super) fn begin(plan: &Plan, options: &Options) -> Result<Self> {
        let agent = Agent::boot("week", &[])?;
        let (host, network) = (&agent.host, agent.network.address());
        let mut feed = Feed::new(&agent.repository)?;
        for update in &plan.updates {
            feed.add(Kind::Main, &update.name, "1.0", "")?;
        }
        // Before the host has its own time.
        let before = Timestamp::now() - SignedDuration::from_hours(24);
        for kind in Kind::ALL {
            feed.publish(kind, before)?;
        }
        feed.configure(host)?;
        host.exec_ok(&["apt-get", "-qq", "--error-on=any", "update"])?;
        let names: Vec<&str> = plan.updates.iter().map(|update| update.name.as_str()).collect();
        host.exec_ok(&[&["apt-get", "-qq", "-y", "install"], names.as_slice()].concat())?;
        for held in plan.updates.iter().filter(|update| update.special == Special::Held) {
            host.exec_ok(&["apt-mark", "-q", "hold", &held.name])?;
        }
        host.push(SINKS, "/usr/lib/lp-sinks.py", "644")?;
        host.push(UNIT, "/etc/systemd/system/lp-sinks.service", "644")?;
        let (hour, minute, long) = WINDOW;
        let window = format!(
            "REBOOT_DOW=\"*\"\nREBOOT_HOUR={hour}\nREBOOT_MIN={minute}\nREBOOT_DURATION_MIN={long}\n\
             DRAIN_CMD='echo drain >>/root/log'\nUNDRAIN_CMD='echo undrain >>/root/log'\n"
        );
        host.push(window, "/etc/default/linux-patch-reboot-window", "644")?;
        for timer in TIMERS {
            let never = "[Timer]\nOnCalendar=\nOnCalendar=2099-01-01\n";
            host.push(never, &format!("/etc/systemd/system/{timer}.timer.d/never.conf"), "644")?;
        }
        let clock = Clock::give(host, &agent.repository)?;
        // The service that holds each shutdown back, and what must not patch here.
        host.shell(
            "systemctl disable -q --now unattended-upgrades 2>/dev/null || true; systemctl daemon-reload; \
             systemctl restart linux-patch-policy.timer linux-patch-notify.timer; \
             systemctl enable -q --now linux-patch-reboot-window.timer lp-sinks; systemctl stop linux-patch-api",
        )?;
        clock.go_to(plan.begins)?;
        host.push(configuration(0), CONFIGURED, "644")?;
        host.exec_ok(&["linux-patch-api", "check-config"])?;
        host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
        agent.wait_until_up().with_context(|| format!("from {network}"))?;
        let step = SignedDuration::from_mins(i64::from(options.step));
        Ok(Self {
            agent,
            feed,
            clock,
            events: plan.events.iter().copied().collect(),
            ends: plan.ends,
            step,
            limit: options.limit,
            updates: plan.updates.clone(),
            published: Vec::new(),
            is_off: false,
            kills: false,
            runs: 0,
            next_run: None,
            required: String::new(),
        })
    }

    /// Goes through it.
    pub(super) fn live(mut self) -> Result<(Self, Seen)> {
        let mut seen = Seen::default();
        match self.go_on(&mut seen) {
            Ok(()) => Ok((self, seen)),
            Err(error) => {
                let last = seen.story.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n");
                let host = &self.agent.host;
                let journal = host.exec_with(&["journalctl", "-n", "60", "--no-pager"], "", ASK_LIMIT * 5);
                let journal =
                    journal.map_or_else(|error| format!("no journal: {error:#}"), |output| output.stdout);
                let console = host.console_tail();
                Err(error.context(format!("the week so far:\n{last}\n{journal}\nthe console:\n{console}")))
            }
        }
    }

    fn go_on(&mut self, seen: &mut Seen) -> Result<()> {
        let begun = Instant::now();
        // What ended before the first look of the notifications is nobody's news.
        self.tick(seen)?;
        self.look(seen)?;
        while self.clock.now() < self.ends {
            let (now, limit) = (self.clock.now(), self.limit);
            ensure!(begun.elapsed() < limit, "after {} s it is only {now}", limit.as_secs());
            let at = self.next();
            self.clock.go_to(at)?;
            seen.steps += 1;
            self.happen(seen)?;
            if self.is_off {
                continue;
            }
            if self.next_run.is_some_and(|next| next <= self.clock.now()) {
                self.patch(seen)?;
            }
            self.tick(seen)?;
            self.look(seen)?;
        }
        Ok(())
    }

    /// When something is to be done next.
    fn next(&self) -> Timestamp {
        let now = self.clock.now();
        let event = self.events.front().map(|(at, _)| *at);
        let of_host = [
            // A look at the very second might come a moment before.
            self.next_run.map(|next| next + SignedDuration::from_secs(1)),
            Some(now + self.step),
            Some(Plan::next_of_window(now, !self.required.is_empty())),
        ];
        let of_host = of_host.into_iter().flatten().filter(|_| !self.is_off);
        event.into_iter().chain(of_host).min().map_or(self.ends, |at| at.min(self.ends))
    }

    /// What has to happen by now.
    fn happen(&mut self, seen: &mut Seen) -> Result<()> {
        while let Some((at, event)) = self.events.pop_front_if(|(at, _)| *at <= self.clock.now()) {
            let host = &self.agent.host;
            match event {
                Event::Publish(kind) => {
                    let due = self.updates.iter().filter(|update| {
                        update.kind == kind && update.at <= at && !self.published.contains(&update.name)
                    });
                    let due: Vec<_> = due.cloned().collect();
                    for update in due {
                        let script = match update.special {
                            Special::Reboot => ASKS_FOR_REBOOT,
                            Special::Fails => FAILS,
                            Special::Nothing | Special::Held => "",
                        };
                        self.feed.add(kind, &update.name, "1.1", script)?;
                        seen.tell(at, format_args!("published: {} ({:?})", update.name, update.special));
                        self.published.push(update.name);
                    }
                    self.feed.publish(kind, at)?;
                    continue;
                }
                Event::RepositoryGone => self.feed.reachable(false)?,
                Event::RepositoryBack => self.feed.reachable(true)?,
                Event::Off => {
                    host.shell(&self.clock.settle())?;
                    host.off()?;
                    seen.off = std::mem::take(&mut self.required);
                    self.is_off = true;
                }
                Event::On => {
                    host.start()?;
                    self.clock.booted(host)?;
                    self.is_off = false;
                    self.agent.wait_until_up()?;
                    self.policy()?;
                }
                // Switched on again, they take everything.
                Event::Refuse | Event::Take if self.is_off => {}
                Event::Refuse => drop(host.exec_ok(&["touch", "/run/lp-sinks-refuse"])?),
                Event::Take => drop(host.exec_ok(&["rm", "-f", "/run/lp-sinks-refuse"])?),
                Event::Kill => self.kills = true,
            }
            seen.tell(at, format_args!("{event:?}"));
        }
        Ok(())
    }

    /// What the agent says of itself.
    fn policy(&mut self) -> Result<Value> {
        let policy = self.agent.get("/health")?.data()?["policy"].clone();
        self.next_run = policy["next_run"].as_str().map(str::parse).transpose().context("next_run")?;
        Ok(policy)
    }

    /// Lets the agent see that the time of its run has come, and waits until that has ended.
    fn patch(&mut self, seen: &mut Seen) -> Result<()> {
        let before = self.policy()?["last_run"].clone();
        self.runs += 1;
        self.agent.host.push(configuration(self.runs), CONFIGURED, "644")?;
        let mut last = Value::Null;
        let begun = self.clock.now();
        let ended = wait::until_every(Duration::from_millis(100), "a run", LIMIT, || {
            // It may be down for a moment.
            if let Ok(policy) = self.policy() {
                last = policy;
            }
            let run = &last["last_run"];
            let is_new = !run.is_null() && run["started_at"] != before["started_at"];
            if is_new && self.kills && run["job_id"].is_string() {
                self.kills = false;
                self.agent.host.exec_ok(&["systemctl", "kill", "--signal=KILL", "linux-patch-api"])?;
                return Ok(None);
            }
            Ok((is_new && run["ended_at"].is_string()).then(|| run.clone()))
        });
        let run = ended.with_context(|| format!("at {begun} it is {last:#}, before {before:#}"))?;
        let error = run["error"].as_str().unwrap_or_default();
        seen.tell(begun, format_args!("run {}: {} {} {error}", run["job_id"], run["status"], run["outcome"]));
        Ok(())
    }

    /// What systemd's timers start.
    fn tick(&mut self, seen: &mut Seen) -> Result<()> {
        let host = &self.agent.host;
        // More looks in a minute than there are in an hour. What one has to say stays for the look that follows.
        let script = format!(
            "{}; systemctl reset-failed {} 2>/dev/null || true; systemctl start linux-patch-policy linux-patch-notify || true",
            self.clock.settle(),
            TIMERS.join(" ")
        );
        host.shell(&script)?;
        let (boots, at) = (host.boots(), self.clock.now());
        // A host that goes down at once ends whoever has said so, too.
        let started = host.exec(&["systemctl", "--no-block", "start", "linux-patch-reboot-window"]);
        let reboots =
            wait::until_every(Duration::from_millis(20), "a look of the reboot window", LIMIT, || {
                if host.boots() > boots {
                    return Ok(Some(true));
                }
                // While it goes down there is nobody to ask.
                let asked = host.exec_with(
                    &["systemctl", "show", "-P", "ActiveState", "linux-patch-reboot-window"],
                    "",
                    ASK_LIMIT,
                );
                let state = asked.map(|asked| asked.stdout.trim().to_owned()).unwrap_or_default();
                Ok(["inactive", "failed"].contains(&state.as_str()).then_some(false))
            })?;
        // Going down it is inactive as well. Then the answer is another one, or none: whoever asks is ended, too.
        let asked = host.exec_with(&["systemctl", "is-system-running"], "", ASK_LIMIT);
        let answer = asked.map(|asked| asked.stdout.trim().to_owned()).unwrap_or_default();
        let is_going = !STAYS.contains(&answer.as_str());
        if !reboots && !is_going {
            let started = started?;
            ensure!(started.success(), "the reboot window does not start: {started:?}");
            return Ok(());
        }
        seen.tell(at, format_args!("the host reboots: {}", self.required));
        seen.reboots.push((at, self.required.clone()));
        host.wait_boot(boots + 1)?;
        self.clock.booted(host)?;
        self.agent.wait_until_up()?;
        // What is done after the boot.
        wait::until_every(Duration::from_millis(100), "the host in service again", LIMIT, || {
            let ticked = host.exec(&["systemctl", "start", "linux-patch-reboot-window"])?;
            ensure!(ticked.success(), "a look after the boot: {ticked:?}");
            let log = host.shell("cat /root/log")?;
            Ok((log.matches("undrain").count() == seen.reboots.len()).then_some(()))
        })
    }

    /// What the host is like now.
    fn look(&mut self, seen: &mut Seen) -> Result<()> {
        let now = self.clock.now();
        let text = self.agent.host.shell(LOOK)?;
        let mut parts = text.split("--\n");
        let packages = parts.next().unwrap_or_default();
        let required = parts.next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        for failed in parts.next().unwrap_or_default().lines() {
            let why = self.agent.host.shell(&format!("journalctl -u {failed} -n 3 --no-pager -o cat"))?;
            seen.tell(now, format_args!("{failed} has failed: {}", why.trim().replace('\n', "; ")));
        }
        for line in packages.lines() {
            let [name, version, state] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                bail!("dpkg-query says {line:?}");
            };
            let is_right = ["ii", "hi"].contains(&state) && ["1.0", "1.1"].contains(&version);
            ensure!(is_right, "{line} at {now}");
            if version == "1.1" && !seen.installed.contains_key(name) {
                seen.installed.insert(name.to_owned(), now);
                seen.tell(now, format_args!("installed: {name}"));
            }
        }
        self.required = required;
        let decision = self.policy()?["decision"].clone();
        if self.next_run.is_none() {
            seen.tell(now, format_args!("no next run: {decision}"));
        }
        Ok(())
    }
}
