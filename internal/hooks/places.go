package hooks

// sourcePlaces is where the source of an event stands, in the order in which they are asked: Wazuh 4's decoders, then Wazuh 5's schema.
var sourcePlaces = []string{
	"data.srcip",
	"data.src_ip", // Suricata
	"data.win.eventdata.ipAddress",
	"data.aws.sourceIPAddress", // CloudTrail; a service's name when AWS itself calls
	"data.aws.client_ip",
	"data.aws.service.action.networkConnectionAction.remoteIpDetails.ipAddressV4", // GuardDuty
	"data.aws.httpRequest.clientIp",                                               // WAF
	"data.ms-graph.ipAddress",
	"data.gcp.jsonPayload.sourceIP",
	"data.gcp.protoPayload.requestMetadata.callerIp",
	"data.office365.ClientIP",
	"data.ClientIP", // Cloudflare
	"data.src_endpoint.ip",
	"data.ip_address",
	"data.source_address",
	"data.remip",                  // FortiGate's VPN
	"data.win.eventdata.sourceIp", // Sysmon
	"source.ip",                   // Wazuh 5
}

// destinationPlaces is where the other side stands, to tell what goes out from what stays inside.
var destinationPlaces = []string{"data.dstip", "data.dest_ip", "data.win.eventdata.destinationIp", "destination.ip"}

// agentAddresses is where the agent's own addresses stand.
var agentAddresses = []string{"agent.ip", "wazuh.agent.host.ip"}

// outboundWhen lists the fields that say by themselves that our own side began, with the values (lower case) that say so.
//
// FortiGate's data.direction is not among them: "outgoing" there means the direction of the session, from whoever began it, and attacks from
// the internet have it too. Its interfaces' roles tell (see outbound).
var outboundWhen = []struct {
	place  string
	values []string
}{
	{"data.direction", []string{"to_client", "outbound", "egress"}}, // Suricata; to_client: the source answers a client
	{"data.win.eventdata.initiated", []string{"true"}},              // Sysmon's event 3: this host opened the connection
	{"data.aws.service.action.networkConnectionAction.connectionDirection", []string{"outbound"}},
	{"data.gcp.jsonPayload.rule_details.direction", []string{"egress"}},
	{"network.direction", []string{"egress", "outbound", "internal"}}, // Wazuh 5
}

// wazuh5Levels are the rule levels of Wazuh 5, as the least level of Wazuh 4 that is told the same.
var wazuh5Levels = map[string]int{"informational": 0, "low": 1, "medium": 7, "high": 12, "critical": 15}
