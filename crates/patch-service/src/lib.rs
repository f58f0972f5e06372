//! What any of our servers needs: mTLS listener, allow list, envelope, configuration, PKI.
