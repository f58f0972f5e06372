//! One WebSocket connection: opening it over the client's TLS, and messages as values.

use futures_util::{SinkExt, StreamExt};
use patch_types::api::{ClientMessage, ServerMessage};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

use crate::{
    error::{Error, Stage},
    transport::{Transport, chain, unwrap_envelope},
};

/// The largest message that is read. A status carries the plan: a thousand packages take half a megabyte.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;

/// An open WebSocket.
pub(crate) struct Socket {
    stream: WebSocketStream<TlsStream<TcpStream>>,
}

/// What came, or that nothing more will.
pub(crate) enum Received {
    Message(Box<ServerMessage>),
    /// A control frame, or a message of a kind that this version does not know.
    Nothing,
    Closed,
}

impl Socket {
    pub(crate) async fn open(transport: &Transport) -> Result<Self, Error> {
        let limit = transport.config.connect_timeout;
        match timeout(limit, Self::connect(transport)).await {
            Ok(result) => result,
            Err(_) => Err(transport.timed_out("open a WebSocket", true, limit)),
        }
    }

    async fn connect(transport: &Transport) -> Result<Self, Error> {
        let address = &transport.config.address;
        let handshake = |e| transport.explain_io(&e, Stage::Handshake);
        let tcp = TcpStream::connect((address.host(), address.port())).await.map_err(handshake)?;
        let tls = TlsConnector::from(transport.tls.config.clone())
            .connect(transport.tls.server_name.clone(), tcp)
            .await
            .map_err(handshake)?;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .max_write_buffer_size(1024 * 1024);
        let url = format!("wss://{address}/api/v1/ws/jobs");
        match client_async_with_config(url, tls, Some(limits)).await {
            Ok((stream, _response)) => Ok(Self { stream }),
            Err(e) => Err(explain(transport, e)),
        }
    }

    pub(crate) async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        let text = serde_json::to_string(message).map_err(|e| Error::Setup(e.to_string()))?;
        // Whatever the reason, the next read says the same, and reading is where it is dealt with.
        let _ = self.stream.send(Message::text(text)).await;
        Ok(())
    }

    /// The next message. Safe to drop while it waits.
    pub(crate) async fn receive(&mut self) -> Received {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(message) => Received::Message(Box::new(message)),
                // A newer agent may say more; what is needed has not changed.
                Err(_) => Received::Nothing,
            },
            Some(Ok(Message::Close(_)) | Err(_)) | None => Received::Closed,
            Some(Ok(_)) => Received::Nothing,
        }
    }

    /// Says goodbye, so that the agent does not count a lost reader.
    pub(crate) async fn close(mut self) {
        let _ = timeout(std::time::Duration::from_secs(1), self.stream.close(None)).await;
    }
}

fn explain(transport: &Transport, error: tungstenite::Error) -> Error {
    match error {
        tungstenite::Error::Io(e) => transport.explain_io(&e, Stage::Request),
        tungstenite::Error::Http(response) => {
            let status = response.status().as_u16();
            let body = response.into_body().unwrap_or_default();
            match unwrap_envelope(status, &body) {
                Err(e) => e,
                Ok(_) => broken(transport, format!("HTTP {status} instead of a WebSocket")),
            }
        }
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::Protocol(tungstenite::error::ProtocolError::HandshakeIncomplete) => {
            transport.refused(Stage::Request)
        }
        other => broken(transport, chain(&other)),
    }
}

fn broken(transport: &Transport, reason: String) -> Error {
    Error::Broken { address: transport.config.address.to_string(), reason }
}
