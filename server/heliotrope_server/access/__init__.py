"""Who may call what: principals, their credentials and scopes, rate limits, and the record of what was done."""

from heliotrope_server.access.access_file import AccessFile
from heliotrope_server.access.audit_log import AuditLog
from heliotrope_server.access.interceptor import AccessInterceptor
from heliotrope_server.access.principal import Principal, Scope

__all__ = ["AccessFile", "AccessInterceptor", "AuditLog", "Principal", "Scope"]
