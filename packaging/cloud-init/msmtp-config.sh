#!/bin/sh
# Stores the password of the mail relay, which cloud-init must not know, and sends a test mail.
set -eu

file=/etc/msmtp-password
log=/var/log/msmtp.log
if [ "$(id -u)" -ne 0 ]; then
  echo "msmtp-config: run this as root" >&2
  exit 1
fi

stored=
saved=$(stty -g 2>/dev/null || true)
trap 'if [ -n "$saved" ]; then stty "$saved"; fi; if [ -n "$stored" ]; then rm -f "$stored"; fi' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Before anybody is asked: who types at once is not shown either.
if [ -n "$saved" ]; then stty -echo; fi
printf 'Password of the relay (an app password or API key; it is not shown): '
IFS= read -r password
if [ -n "$saved" ]; then stty "$saved"; fi
printf '\n'
if [ -z "$password" ]; then
  echo "msmtp-config: no password was given; nothing was changed" >&2
  exit 1
fi

# In one step, and never readable for others.
umask 077
stored=$(mktemp "$file.XXXXXX")
printf '%s\n' "$password" >"$stored"
mv -f "$stored" "$file"
stored=
echo "stored in $file"

recipient=$(sed -n 's/^root:[[:space:]]*//p' /etc/aliases | head -n 1)
if [ -z "$recipient" ]; then
  echo "msmtp-config: /etc/aliases does not say who gets root's mail; add a line 'root: ADDRESS'" >&2
  exit 1
fi
if said=$(printf 'To: root\nSubject: Test mail of %s\n\nThis host can send mail.\n' "$(hostname)" | msmtp root 2>&1); then
  echo "A test mail is on its way to $recipient. If it does not arrive: look into its spam folder, and at /etc/aliases."
  exit 0
fi
echo "$said" >&2
case $said in
  *"uthentication failed"* | *"535"*)
    echo "The relay does not take the password. With two-factor authentication it wants an app password." >&2 ;;
  *"certificate"*)
    echo "The relay's certificate is not believed: apt-get install ca-certificates, and look at the clock." >&2 ;;
  *"cannot locate host"* | *"cannot connect"* | *"onnection refused"* | *"timed out"*)
    echo "The relay cannot be reached: look at host and port in /etc/msmtprc, at the name's resolution, and at the firewall." >&2 ;;
  *)
    echo "The end of $log may say more." >&2 ;;
esac
exit 1
