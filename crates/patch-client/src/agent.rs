//! The agent's endpoints, one method each.

use std::sync::Arc;

use patch_types::{
    ErrorDetail, JobId, PackageName, Plan, Unrehearsed,
    api::{
        ApplyRequest, CrlInForce, CrlRequest, Health, InstallRequest, Job, JobList, PackageDetail,
        PackageList, PatchSet, RebootRequest, RebootState, RemoveRequest, RollbackRequest, Service,
        ServiceList, SystemInfo, UpdateRequest, WhyNot,
    },
    compliance::Compliance,
};
use reqwest::Method;
use uuid::Uuid;

use crate::{
    address::Address,
    answer::Answer,
    config::{ClientConfig, Submit},
    error::Error,
    filter::{JobFilter, PackageFilter, removal},
    transport::{Request, Transport},
};

/// A client of one agent. Cheap to clone; clones share their connections.
///
/// Every method fails with an [`Error`] that says what to do about it. The methods that change something come in two
/// forms: the plain one makes a job, and `plan_…` answers with what that job would do.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
}

impl Client {
    /// Reads and checks the files that `config` names. Connects when it is first asked something.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::ServerName`] or [`Error::Setup`]: what is wrong with the configuration.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        Ok(Self { transport: Arc::new(Transport::new(config)?) })
    }

    /// Where the agent is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.transport.config.address
    }

    /// `GET /packages`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn packages(&self, filter: &PackageFilter) -> Result<Answer<PackageList>, Error> {
        self.transport.send(&Request::get(&["packages"]).query(filter.query())).await
    }

    /// `GET /packages/{name}`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn package(&self, name: &PackageName) -> Result<Answer<PackageDetail>, Error> {
        self.transport.send(&Request::get(&["packages", name.as_str()])).await
    }

    /// `POST /packages`; `dry_run` in the request is overruled, unless it is to be rehearsed.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn install(&self, request: &InstallRequest, submit: &Submit) -> Result<Answer<Job>, Error> {
        self.transport.send(&install(request, false)?.submit(submit)).await
    }

    /// What [`Client::install`] would do.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn plan_install(&self, request: &InstallRequest) -> Result<Answer<Plan>, Error> {
        self.transport.send(&install(request, true)?).await
    }

    /// `PUT /packages/{name}`: updates or holds; `dry_run` in the request is overruled, unless it is to be rehearsed.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn update(
        &self,
        name: &PackageName,
        request: &UpdateRequest,
        submit: &Submit,
    ) -> Result<Answer<Job>, Error> {
        self.transport.send(&update(name, request, false)?.submit(submit)).await
    }

    /// What [`Client::update`] would do.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn plan_update(
        &self,
        name: &PackageName,
        request: &UpdateRequest,
    ) -> Result<Answer<Plan>, Error> {
        self.transport.send(&update(name, request, true)?).await
    }

    /// `PUT /packages/{name}` with `hold`: puts a package on hold, or takes it off.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn hold(&self, name: &PackageName, on: bool, submit: &Submit) -> Result<Answer<Job>, Error> {
        self.update(name, &UpdateRequest { hold: Some(on), ..Default::default() }, submit).await
    }

    /// `DELETE /packages/{name}`; `dry_run` in the request is overruled, unless it is to be rehearsed.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn remove(
        &self,
        name: &PackageName,
        request: &RemoveRequest,
        submit: &Submit,
    ) -> Result<Answer<Job>, Error> {
        self.transport.send(&remove(name, request, false).submit(submit)).await
    }

    /// What [`Client::remove`] would do.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn plan_remove(
        &self,
        name: &PackageName,
        request: &RemoveRequest,
    ) -> Result<Answer<Plan>, Error> {
        self.transport.send(&remove(name, request, true)).await
    }

    /// `GET /patches`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn patches(&self) -> Result<Answer<PatchSet>, Error> {
        self.transport.send(&Request::get(&["patches"])).await
    }

    /// `GET /patches/{name}/why-not`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn why_not(&self, name: &PackageName) -> Result<Answer<WhyNot>, Error> {
        self.transport.send(&Request::get(&["patches", name.as_str(), "why-not"])).await
    }

    /// `POST /patches/refresh`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn refresh(&self, submit: &Submit) -> Result<Answer<Job>, Error> {
        self.transport.send(&Request::new(Method::POST, &["patches", "refresh"]).submit(submit)).await
    }

    /// `POST /patches/apply`; `dry_run` in the request is overruled, unless it is to be rehearsed.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn apply(&self, request: &ApplyRequest, submit: &Submit) -> Result<Answer<Job>, Error> {
        self.transport.send(&apply(request, false)?.submit(submit)).await
    }

    /// What [`Client::apply`] would do.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn plan_apply(&self, request: &ApplyRequest) -> Result<Answer<Plan>, Error> {
        self.transport.send(&apply(request, true)?).await
    }

    /// `GET /system/info`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn info(&self) -> Result<Answer<SystemInfo>, Error> {
        self.transport.send(&Request::get(&["system", "info"])).await
    }

    /// `GET /system/services`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn services(&self) -> Result<Answer<ServiceList>, Error> {
        self.transport.send(&Request::get(&["system", "services"])).await
    }

    /// `GET /system/services/{name}`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn service(&self, name: &str) -> Result<Answer<Service>, Error> {
        self.transport.send(&Request::get(&["system", "services", name])).await
    }

    /// `GET /compliance`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn compliance(&self) -> Result<Answer<Compliance>, Error> {
        self.transport.send(&Request::get(&["compliance"])).await
    }

    /// `GET /system/reboot`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn reboot_state(&self) -> Result<Answer<RebootState>, Error> {
        self.transport.send(&Request::get(&["system", "reboot"])).await
    }

    /// `POST /system/reboot`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn reboot(&self, request: &RebootRequest, submit: &Submit) -> Result<Answer<Job>, Error> {
        let call = Request::new(Method::POST, &["system", "reboot"]).json(request)?;
        self.transport.send(&call.submit(submit)).await
    }

    /// `PUT /system/crl`: puts a newer revocation list in force. `crl` is PEM, or DER in base64.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn put_crl(&self, crl: &str) -> Result<Answer<CrlInForce>, Error> {
        let body = CrlRequest { crl: crl.to_owned() };
        self.transport.send(&Request::new(Method::PUT, &["system", "crl"]).json(&body)?).await
    }

    /// `GET /jobs`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Answer<JobList>, Error> {
        self.transport.send(&Request::get(&["jobs"]).query(filter.query())).await
    }

    /// `GET /jobs/{id}`, with its log, plan and results.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn job(&self, id: JobId) -> Result<Answer<Job>, Error> {
        self.transport.send(&Request::get(&["jobs", &id.to_string()])).await
    }

    /// `DELETE /jobs/{id}`: cancels a job while that is safe.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn cancel(&self, id: JobId) -> Result<Answer<Job>, Error> {
        self.transport.send(&Request::new(Method::DELETE, &["jobs", &id.to_string()])).await
    }

    /// `POST /jobs/{id}/rollback`: undoes what a job changed, as a job of its own.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn rollback(
        &self,
        id: JobId,
        request: &RollbackRequest,
        submit: &Submit,
    ) -> Result<Answer<Job>, Error> {
        let call = Request::new(Method::POST, &["jobs", &id.to_string(), "rollback"]).json(request)?;
        self.transport.send(&call.submit(submit)).await
    }

    /// What [`Client::rollback`] would do, and for a snapshot what else it would take back.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn plan_rollback(&self, id: JobId, request: &RollbackRequest) -> Result<Answer<Plan>, Error> {
        let request = RollbackRequest { dry_run: true, if_plan: None, ..request.clone() };
        let call = Request::new(Method::POST, &["jobs", &id.to_string(), "rollback"]).json(&request)?;
        self.transport.send(&call).await
    }

    /// `POST /jobs/{id}/confirm`: keeps a change that goes back otherwise. Always over a new connection, since the agent
    /// takes no other: it shows that the host can still be reached.
    ///
    /// # Errors
    /// See [`Client`]; the files of the configuration are read again.
    pub async fn confirm(&self, id: JobId) -> Result<Answer<Job>, Error> {
        let fresh = Transport::new(self.transport.config.clone())?;
        fresh.send(&Request::new(Method::POST, &["jobs", &id.to_string(), "confirm"])).await
    }

    /// `GET /health`, also of an agent that is not healthy.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn health(&self) -> Result<Answer<Health>, Error> {
        match self.transport.send(&Request::get(&["health"])).await {
            Err(Error::Api { status: 503, detail, request_id }) => {
                unhealthy(&detail, request_id).ok_or(Error::Api { status: 503, detail, request_id })
            }
            other => other,
        }
    }

    /// `GET /metrics`, in Prometheus' text format.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.transport.send_plain(&Request::get(&["metrics"])).await
    }

    /// `GET /openapi.json`.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn openapi(&self) -> Result<String, Error> {
        self.transport.send_plain(&Request::get(&["openapi.json"])).await
    }
}

/// The health that an unhealthy agent tells as the details of its error; `None` if the error is about something else.
fn unhealthy(detail: &ErrorDetail, request_id: Uuid) -> Option<Answer<Health>> {
    let raw = serde_json::value::to_raw_value(&detail.details).ok()?;
    Answer::read(raw, request_id).ok()
}

/// For a plan nothing is rehearsed; a rehearsal that is all that is wanted is a job.
fn alone(dry_run: &mut bool, rehearse: &mut bool, unrehearsed: &mut Option<Unrehearsed>, plan: bool) {
    if plan {
        *rehearse = false;
        *unrehearsed = None;
    }
    *dry_run = plan || (*dry_run && *rehearse);
}

fn install(request: &InstallRequest, dry_run: bool) -> Result<Request, Error> {
    let mut body = request.clone();
    alone(&mut body.options.dry_run, &mut body.options.rehearse, &mut body.options.unrehearsed, dry_run);
    Request::new(Method::POST, &["packages"]).json(&body)
}

fn update(name: &PackageName, request: &UpdateRequest, dry_run: bool) -> Result<Request, Error> {
    let mut body = request.clone();
    alone(&mut body.dry_run, &mut body.rehearse, &mut body.unrehearsed, dry_run);
    Request::new(Method::PUT, &["packages", name.as_str()]).json(&body)
}

fn remove(name: &PackageName, request: &RemoveRequest, dry_run: bool) -> Request {
    let mut asked = request.clone();
    alone(&mut asked.dry_run, &mut asked.rehearse, &mut asked.unrehearsed, dry_run);
    Request::new(Method::DELETE, &["packages", name.as_str()]).query(removal(&asked))
}

fn apply(request: &ApplyRequest, dry_run: bool) -> Result<Request, Error> {
    let mut body = request.clone();
    alone(&mut body.dry_run, &mut body.rehearse, &mut body.unrehearsed, dry_run);
    Request::new(Method::POST, &["patches", "apply"]).json(&body)
}
